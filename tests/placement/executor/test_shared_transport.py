import os
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.placement.executor import launch, lines
from segue.placement.executor.lines import Arriving, Incoming, Outgoing, whereabouts
from segue.placement.executor.message import header_bytes, layouts_of, offsets
from tests.placement.executor import jobs, line_jobs
from tests.placement.executor.test_executor import cpu_devices

pytestmark = pytest.mark.timeout(300)
LIMIT_S = 250.0
CASES = ["branches", "tied", "dag-1"]
TYPES = (torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.float64)


@pytest.fixture(scope="module")
def runs() -> list:
    """Some cases on three devices, moved at random, with messages that go every way; one entry a worker."""
    return launch(line_jobs.train_every_way, cpu_devices(3), cpu_devices(3), CASES, timeout_s=LIMIT_S)


@pytest.mark.parametrize("case", CASES)
def test_the_way_that_messages_go_changes_no_bit(runs: list, case: str) -> None:
    jobs.assert_same_bits(runs[0]["results"][case])


def test_messages_go_through_shared_memory_where_workers_share_a_host_and_there_is_room(runs: list) -> None:
    for worker in runs:
        went = worker["went"]
        assert went["shared"]
        assert all(went["shared"])
        assert went["gloo"] == went["apart"] == []
        assert set(went["narrow"]) == {True, False}


def test_an_executor_that_goes_leaves_no_file_open() -> None:
    for counts in launch(line_jobs.open_files, cpu_devices(2), cpu_devices(2), timeout_s=LIMIT_S):
        assert counts[1] == counts[2]


def test_how_long_the_first_message_took_is_noted_where_it_was_waited_for() -> None:
    early, late = launch(line_jobs.first_messages, cpu_devices(2), cpu_devices(2), [0, 1], timeout_s=LIMIT_S)
    for way in ("shared", "gloo"):
        assert np.isnan(early[way]).all(), way
        num_bytes, seconds = late[way]
        assert num_bytes == line_jobs.FIRST_BYTES
        assert 0.0 < seconds < line_jobs.PAUSE_S, way


def test_of_a_later_message_that_was_waited_for_nothing_is_noted() -> None:
    _, late = launch(line_jobs.first_messages, cpu_devices(2), cpu_devices(2), [1, 0], timeout_s=LIMIT_S)
    for way in ("shared", "gloo"):
        assert np.isnan(late[way]).all(), way


def make_line(timeout_s: float = 60.0) -> tuple[Incoming, Outgoing]:
    """Both ends of a line in this process."""
    incoming = Incoming(1, timeout_s)
    outgoing = Outgoing(os.getpid(), incoming.descriptors, timeout_s)
    incoming.settle()
    return incoming, outgoing


def send(line: Outgoing, *tensors: torch.Tensor) -> bool:
    return line.send(layouts_of(tensors), tensors, lambda: 0.0)


def no_detour() -> Any:
    raise AssertionError("a message that found room went another way")


def expect(line: Incoming, *tensors: torch.Tensor) -> Arriving:
    return line.expect(layouts_of(tensors), no_detour)


@st.composite
def draw_tensor(draw: Any) -> torch.Tensor:
    shape = draw(st.lists(st.integers(0, 5), max_size=4))
    numbers = torch.arange(int(np.prod(shape, dtype=int)), dtype=torch.float32) * draw(st.integers(1, 9))
    order = draw(st.permutations(range(len(shape))))
    return numbers.reshape(shape).to(draw(st.sampled_from(TYPES))).permute(order)


@settings(max_examples=60, deadline=None)
@given(messages=st.lists(st.lists(draw_tensor(), max_size=3), max_size=8), stamp=st.floats(0.0, 1e9))
def test_what_is_sent_arrives_as_it_lay_in_memory(messages: list[list[torch.Tensor]], stamp: float) -> None:
    incoming, outgoing = make_line()
    expected = [expect(incoming, *tensors) for tensors in messages]
    for tensors in messages:
        assert outgoing.send(layouts_of(tensors), tensors, lambda: stamp)
    for tensors, arriving in reversed(list(zip(messages, expected, strict=True))):
        arriving.wait()
        assert arriving.stamp == stamp
        for sent, got in zip(tensors, arriving.tensors, strict=True):
            assert torch.equal(sent, got)
            assert sent.dtype == got.dtype
            assert sent.numel() == 0 or sent.stride() == got.stride() or 1 in sent.shape


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_message_overwrites_one_that_may_not_have_been_read(data: st.DataObject) -> None:
    with line_jobs.narrow_lines():
        incoming, outgoing = make_line()
        unread: list[tuple[torch.Tensor, Arriving]] = []
        for number in range(data.draw(st.integers(1, 40))):
            size = data.draw(st.sampled_from([8, 300, lines.LARGEST_BYTES - 64]))
            tensor = torch.full((size,), number, dtype=torch.uint8)
            sent = send(outgoing, tensor)
            arriving = incoming.expect(layouts_of([tensor]), lambda: (_Done(), _Nothing()))
            if sent:
                unread.append((tensor, arriving))
            else:
                # No gap between, before or behind those that are unread is as large as the message.
                gaps = (len(unread) + 1) * framed_bytes(tensor)
                assert sum(framed_bytes(other) for other, _ in unread) + gaps > lines.LINE_BYTES
            for _ in range(data.draw(st.integers(0, 2))):
                if unread:
                    read(*unread.pop(0))
                    outgoing.wait()
        for tensor, arriving in unread:
            read(tensor, arriving)


def framed_bytes(tensor: torch.Tensor) -> int:
    """Bytes of a line that a message of one tensor takes, in whole cache lines."""
    return -(-offsets(layouts_of([tensor]), header_bytes(1))[-1] // 64) * 64


def read(tensor: torch.Tensor, arriving: Arriving) -> None:
    arriving.wait()
    assert torch.equal(tensor, arriving.tensors[0])


class _Done:
    """A receive that is over."""

    def wait(self) -> None:
        pass


class _Nothing:
    """A message without contents."""

    header = (0.0,)

    def tensors(self) -> list[torch.Tensor]:
        return []


def test_room_of_large_messages_is_used_again_as_soon_as_they_are_read() -> None:
    incoming, outgoing = make_line()
    tensor = torch.ones(lines.TOLD_BYTES)
    for _ in range(10):
        arriving = expect(incoming, tensor)
        assert send(outgoing, tensor)
        read(tensor, arriving)
    assert tensor.nbytes <= incoming.touched_bytes < 2 * tensor.nbytes
    # The schedule says the same later, and it counts once.
    for _ in range(10):
        outgoing.wait()
    arriving = expect(incoming, tensor), expect(incoming, tensor)
    assert send(outgoing, tensor)
    assert send(outgoing, 2 * tensor)
    read(tensor, arriving[0])
    read(2 * tensor, arriving[1])


def test_memory_is_given_back_and_used_again() -> None:
    incoming, outgoing = make_line()
    tensor = torch.ones(1 << 16)
    for number in range(3):
        arriving = expect(incoming, tensor)
        assert send(outgoing, number * tensor)
        read(number * tensor, arriving)
        outgoing.wait()
        assert incoming.touched_bytes >= tensor.nbytes
        incoming.give_back()
        assert incoming.touched_bytes == 0


def test_of_small_messages_the_schedule_alone_says_that_they_were_read() -> None:
    incoming, outgoing = make_line()
    tensor = torch.ones(1024)
    for number in range(8):
        arriving = expect(incoming, number * tensor)
        assert send(outgoing, number * tensor)
        read(number * tensor, arriving)
    assert incoming.touched_bytes >= 8 * tensor.nbytes
    for _ in range(8):
        outgoing.wait()
    before = incoming.touched_bytes
    for _ in range(8):
        expect(incoming, tensor)
        assert send(outgoing, tensor)
    assert incoming.touched_bytes == before


def test_a_message_without_room_goes_another_way_in_its_turn() -> None:
    incoming, outgoing = make_line()
    small, large = torch.ones(4), torch.ones(lines.LARGEST_BYTES)
    assert send(outgoing, small)
    assert not send(outgoing, large)
    assert send(outgoing, 2 * small)
    detours: list[str] = []

    def detour() -> Any:
        detours.append("begun")
        return _Done(), _Nothing()

    first, second, third = (
        expect(incoming, small),
        incoming.expect(layouts_of([large]), detour),
        expect(incoming, small),
    )
    third.wait()
    assert detours == ["begun"]
    second.wait()
    assert second.tensors == []
    assert first.tensors[0].tolist() == [1.0] * 4
    assert third.tensors[0].tolist() == [2.0] * 4


def test_a_sender_that_has_ended_is_noticed_at_once_but_not_before_its_last_message() -> None:
    incoming, outgoing = make_line(timeout_s=1e6)
    tensor = torch.ones(3)
    last, never = expect(incoming, tensor), expect(incoming, tensor)
    send(outgoing, tensor)
    del outgoing
    last.wait()
    with pytest.raises(RuntimeError, match="Connection closed by peer: worker 1"):
        never.wait()


def test_a_receiver_that_has_ended_is_noticed() -> None:
    incoming, outgoing = make_line()
    del incoming
    with pytest.raises(BrokenPipeError):
        send(outgoing, torch.ones(3))


def test_a_wait_for_a_message_ends_after_the_groups_timeout() -> None:
    incoming, outgoing = make_line(timeout_s=0.05)
    with pytest.raises(RuntimeError, match="Timed out waiting 50ms for a message of worker 1"):
        expect(incoming, torch.ones(3)).wait()
    del outgoing


def test_a_network_namespace_of_its_own_is_another_host(monkeypatch: pytest.MonkeyPatch) -> None:
    here, readlink = whereabouts(), os.readlink
    assert here == whereabouts() != None  # noqa: E711
    monkeypatch.setattr(os, "readlink", lambda path: "net:[1]" if path.endswith("net") else readlink(path))
    assert whereabouts() not in (here, None)
    monkeypatch.setattr(os, "readlink", lambda path: "1" if path == "/proc/self" else readlink(path))
    assert whereabouts() is None
