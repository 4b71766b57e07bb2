"""The controller against steps that a second simulator plays, with device speeds that the agent has to find out."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from segue.agent.beliefs import Beliefs
from segue.agent.controller import Approval, Controller, ControllerConfig, Decision
from segue.agent.propose import Proposal
from segue.agent.proposer import Request
from segue.placement.clock import SimulatedClock
from segue.placement.costs import Profile, make_costs
from segue.placement.graph import make_graph
from segue.placement.placement import Placement
from segue.placement.presets import preset

OPS, STEPS = 12, 60
GRAPH = make_graph("chain", [(i, i + 1) for i in range(OPS - 1)], output_bytes=1e3, parameter_bytes=1e4)
PROFILE = Profile(np.full(OPS, 2e-3), np.full(OPS, 4e-3), np.zeros(OPS), "measured")
TOPOLOGY = preset("emulated-2")
SIZES = (4, 4)
SPLIT = np.repeat([0, 1], OPS // 2)
BETTER = np.repeat([0, 1], [8, 4])
CONFIG = ControllerConfig(profile_steps=4, rounds=1)


class Thinker:
    """Stands for the thinking process: answers at once with a given map."""

    @property
    def ready(self) -> bool:
        return True

    def __init__(self, *maps: np.ndarray):
        self.maps = list(maps)
        self.requests: list[Request] = []

    def ask(self, request: Request) -> None:
        self.requests.append(request)

    def poll(self) -> Proposal | None:
        request = self.requests[-1]
        devices = self.maps[min(len(self.requests), len(self.maps)) - 1]
        placement = Placement(devices, len(SIZES))
        return Proposal(
            placement,
            request.clock.step_time(devices),
            request.clock.step_time(request.start.devices),
            1,
            "search",
            len(placement.moved(request.start)),
            True,
        )

    def close(self) -> None:
        pass


def truth(speed: np.ndarray, links: float = 1.0) -> SimulatedClock:
    topology = TOPOLOGY.with_speed(speed)
    slower = [replace(link, latency_s=link.latency_s * links) for link in topology.links]
    topology = replace(topology, links=tuple(slower))
    return SimulatedClock(GRAPH, topology, make_costs(GRAPH, topology, PROFILE), SIZES)


def play(
    thinker: Thinker,
    speeds: dict[int, np.ndarray],
    steps: int = STEPS,
    outlier: int = -1,
    pause_s: float = 0.1,
    slow_links_from: int = STEPS,
    approve: Approval | None = None,
    **changes: Any,
) -> Controller:
    """A run whose true speeds change at the given steps."""
    beliefs = Beliefs(GRAPH, TOPOLOGY, PROFILE, SIZES)
    config = ControllerConfig(**{**CONFIG.__dict__, **changes})
    start = Placement(SPLIT, len(SIZES))
    controller = Controller(beliefs, start, GRAPH.parameter_bytes * 3, steps, config, thinker, approve)  # pyright: ignore
    controller.pause_s = pause_s
    clock = truth(TOPOLOGY.speed)
    for step in range(steps):
        if step in speeds:
            clock = truth(speeds[step])
        if step == slow_links_from:
            clock = truth(TOPOLOGY.speed, 200.0)
        now = truth(TOPOLOGY.speed / 5) if step == outlier else clock
        decision = controller.observe(step, now.step(controller.placement))
        if decision is not None:
            controller.moved(0.01)
    return controller


def actions(controller: Controller) -> list[str]:
    return [decision.action for decision in controller.log]


def test_a_better_placement_is_taken_and_kept() -> None:
    controller = play(Thinker(BETTER), {})
    assert actions(controller) == ["move", "keep"]
    move = controller.log[0]
    assert move.predicted_gain_s is not None
    assert move.predicted_cost_s is not None
    assert move.predicted_gain_s > move.predicted_cost_s
    assert set(move.moves) == {"op6", "op7"}
    assert set(map(tuple, move.moves.values())) == {("dev1", "dev0")}


class SlowThinker(Thinker):
    """Takes `warm_up` looks to be ready and `thinks` to answer, and makes every step beside that five times as long."""

    def __init__(self, *maps: np.ndarray, warm_up: int, thinks: int):
        super().__init__(*maps)
        self.warm_up, self.thinks = warm_up, thinks
        self.left = 0

    @property
    def ready(self) -> bool:
        self.warm_up -= 1
        return self.warm_up < 0

    def ask(self, request: Request) -> None:
        super().ask(request)
        self.left = self.thinks

    def poll(self) -> Proposal | None:
        self.left -= 1
        return None if self.left > 0 else super().poll()

    @property
    def busy(self) -> bool:
        return self.warm_up > 0 or self.left > 0


def test_steps_beside_which_the_policy_warms_up_or_thinks_are_not_counted() -> None:
    thinker = SlowThinker(BETTER, warm_up=8, thinks=5)
    beliefs = Beliefs(GRAPH, TOPOLOGY, PROFILE, SIZES)
    start = Placement(SPLIT, len(SIZES))
    controller = Controller(beliefs, start, GRAPH.parameter_bytes * 3, STEPS, CONFIG, thinker)  # pyright: ignore
    quiet, busy = truth(TOPOLOGY.speed), truth(TOPOLOGY.speed / np.array([5.0, 1.0]))
    for step in range(STEPS):
        clock = busy if thinker.busy else quiet
        if controller.observe(step, clock.step(controller.placement)) is not None:
            controller.moved(0.01)
    assert actions(controller) == ["move", "keep"]
    move = controller.log[0]
    assert move.measured_before_s == pytest.approx(quiet.step_time(SPLIT))
    assert list(move.speeds.values()) == pytest.approx(TOPOLOGY.speed, rel=0.05)


class Liar(Thinker):
    """Promises more than is true."""

    def poll(self) -> Proposal:
        honest = super().poll()
        return Proposal(honest.placement, 0.01, honest.start_step_time_s, 1, "search", 1, True)


def test_a_placement_that_proves_slower_is_taken_back() -> None:
    controller = play(Liar(np.ones(OPS, np.int64)), {})
    assert actions(controller)[:2] == ["move", "take back"]
    assert np.array_equal(controller.placement.devices, SPLIT)


def test_a_move_that_does_not_pay_by_the_end_is_not_made() -> None:
    controller = play(Thinker(BETTER), {}, pause_s=100.0)
    assert actions(controller) == ["stay"]
    assert "for a cost of 100" in controller.log[0].why


def test_measured_busy_seconds_correct_the_believed_speeds() -> None:
    true_speed = TOPOLOGY.speed * np.array([0.5, 2.0])
    controller = play(Thinker(SPLIT), {0: true_speed})
    assert controller.beliefs.speed == pytest.approx(true_speed, rel=0.06)
    assert actions(controller) == ["stay"]


def test_a_device_that_slows_down_is_noticed_and_answered() -> None:
    slow = TOPOLOGY.speed / np.array([3.0, 1.0])
    thinker = Thinker(BETTER, np.repeat([0, 1], [4, 8]))
    controller = play(thinker, {30: slow})
    assert actions(controller) == ["move", "keep", "move", "keep"]
    answer = controller.log[2]
    assert "dev0 takes" in answer.why
    assert 30 < answer.step <= 36
    assert thinker.requests[1].clock.topology.speed == pytest.approx(slow, rel=0.06)


def test_links_that_slow_down_are_noticed_and_answered() -> None:
    thinker = Thinker(BETTER, np.zeros(OPS, np.int64))
    controller = play(thinker, {}, slow_links_from=30)
    assert actions(controller)[:3] == ["move", "keep", "move"]
    answer = controller.log[2]
    assert "sending from dev0 takes" in answer.why
    assert 30 < answer.step <= 36
    believed, before = thinker.requests[1].clock.topology.latency_s, TOPOLOGY.latency_s
    assert believed[0, 1] == pytest.approx(200 * before[0, 1], rel=0.1)


def test_one_slow_step_is_no_drift() -> None:
    controller = play(Thinker(BETTER), {}, outlier=40)
    assert actions(controller) == ["move", "keep"]


class Person:
    """Somebody who looks at every proposal, and says something after so many steps."""

    def __init__(self, word: bool, after: int):
        self.word = word
        self.after = after
        self.asked: list[Decision] = []

    def __call__(self, proposed: Decision) -> bool | None:
        self.asked.append(proposed)
        return self.word if self.asked.count(proposed) > self.after else None


def test_a_move_waits_until_somebody_approves_of_it() -> None:
    person = Person(True, after=5)
    controller = play(Thinker(BETTER), {}, approve=person)
    assert actions(controller) == ["propose", "move", "keep"]
    proposed, move, _ = controller.log
    assert move.step == proposed.step + 5
    assert person.asked == [proposed] * 6
    assert move.moves == proposed.moves
    assert move.why.startswith(f"approved, as proposed before step {proposed.step}; predicted ")
    assert proposed.predicted_gain_s is not None
    assert move.predicted_gain_s is not None
    assert move.predicted_gain_s < proposed.predicted_gain_s


def test_what_somebody_declines_is_not_made_and_not_asked_again() -> None:
    person = Person(False, after=0)
    controller = play(Thinker(BETTER), {}, approve=person)
    assert actions(controller) == ["propose", "decline"]
    assert len(person.asked) == 1
    assert np.array_equal(controller.placement.devices, SPLIT)


def test_an_approval_that_comes_too_late_to_pay_changes_nothing() -> None:
    controller = play(Thinker(BETTER), {}, pause_s=2.0, approve=Person(True, after=45))
    assert actions(controller) == ["propose", "stay"]
    assert np.array_equal(controller.placement.devices, SPLIT)


def test_a_proposal_that_a_change_of_pace_overtakes_is_withdrawn() -> None:
    slow = TOPOLOGY.speed / np.array([6.0, 1.0])
    person = Person(True, after=40)
    controller = play(Thinker(BETTER, np.repeat([0, 1], [3, 9])), {30: slow}, approve=person)
    assert actions(controller) == ["propose", "withdraw", "propose"]
    assert "dev0 takes" in controller.log[1].why


def test_what_proves_slower_is_taken_back_without_a_question() -> None:
    controller = play(Liar(np.ones(OPS, np.int64)), {}, approve=Person(True, after=0))
    assert actions(controller)[:3] == ["propose", "move", "take back"]


def make_controller(thinker: Thinker, approve: Approval | None = None) -> Controller:
    beliefs = Beliefs(GRAPH, TOPOLOGY, PROFILE, SIZES)
    start = Placement(np.zeros(OPS, np.int64), len(SIZES))
    return Controller(beliefs, start, GRAPH.parameter_bytes * 3, STEPS, CONFIG, thinker, approve)  # pyright: ignore


def test_a_placement_before_the_first_step_waits_for_its_approval_too() -> None:
    controller = make_controller(Thinker(BETTER), Person(True, after=3))
    assert controller.place(0) is None
    clock = truth(TOPOLOGY.speed)
    for step in range(STEPS):
        if controller.observe(step, clock.step(controller.placement)) is not None:
            controller.moved(0.01)
    assert actions(controller)[:3] == ["propose", "move", "keep"]
    assert controller.log[0].step == 0


def test_ops_are_placed_before_the_first_step_and_then_measured() -> None:
    controller = make_controller(Thinker(BETTER))
    decision = controller.place(0)
    assert decision is not None
    assert (decision.action, decision.step) == ("move", 0)
    assert decision.why.startswith("before the first measurement; predicted ")
    assert decision.measured_before_s is None
    assert truth(TOPOLOGY.speed).step_time(controller.placement.devices) < truth(TOPOLOGY.speed).step_time(
        np.zeros(OPS, np.int64)
    )
    clock = truth(TOPOLOGY.speed)
    controller.moved(0.01)
    for step in range(STEPS):
        if controller.observe(step, clock.step(controller.placement)) is not None:
            controller.moved(0.01)
    assert "judge" not in controller._phase


def test_a_move_that_the_workers_refuse_is_noted_and_changes_nothing() -> None:
    controller = make_controller(Thinker(BETTER))
    assert controller.place(0) is not None
    controller.refused(-1, "worker 1: no memory")
    assert actions(controller) == ["move", "refused"]
    assert "worker 1: no memory" in controller.log[-1].why
    assert not controller.placement.devices.any()


def test_the_same_steps_give_the_same_decisions() -> None:
    slow = {30: TOPOLOGY.speed / np.array([3.0, 1.0])}

    def log() -> list[Decision]:
        return play(Thinker(BETTER, SPLIT), slow).log

    assert log() == log()
