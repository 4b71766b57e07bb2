from dataclasses import replace
from pathlib import Path

import pytest

from segue.placement.executor.channels import Channels
from segue.placement.topology import Device, Topology, uniform_links


def topology(channel: str = "") -> Topology:
    names = ["a", "b", "c"]
    links = tuple(replace(k, channels=(channel,) if channel else ()) for k in uniform_links(names, 1e-3, 1e9))
    return Topology("three", tuple(Device(name, "emulated", 1e9) for name in names), links)


def test_workers_take_turns_on_a_shared_channel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGUE_STORE", str(tmp_path / "store"))
    first, second = Channels(topology("bus")), Channels(topology("bus"))
    assert first.take(0, 1, 10.0, 2.0) == 12.0
    assert second.take(2, 1, 11.0, 3.0) == 15.0
    assert first.take(1, 0, 20.0, 1.0) == 21.0


def test_links_without_a_channel_in_common_do_not_wait_for_each_other(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("SEGUE_STORE", str(tmp_path / "store"))
    first, second = Channels(topology()), Channels(topology())
    assert first.take(0, 1, 10.0, 2.0) == 12.0
    assert second.take(1, 0, 11.0, 3.0) == 14.0
    assert first.take(0, 1, 11.0, 2.0) == 14.0


def test_a_worker_that_was_not_launched_has_the_channels_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SEGUE_STORE", raising=False)
    assert Channels(topology("bus")).take(0, 1, 10.0, 2.0) == 12.0
    assert Channels(topology("bus")).take(2, 1, 10.0, 2.0) == 12.0
