"""`Controller`: decides during a run when to ask the policy, when to move, and whether a move was right."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..placement.clock import StepReport
from ..placement.graph import Graph
from ..placement.placement import Placement
from .beliefs import Beliefs
from .propose import Proposal
from .proposer import Proposer, Request, answer


@dataclass(frozen=True)
class ControllerConfig:
    """How a controller decides.

    Attributes:
        profile_steps: measured steps before the first proposal, and after every move before it is judged.
        skip_steps: steps after a change that are not counted (caches and allocators warm up).
        drift: relative change of a device's or its links' pace that makes the agent think again.
        least_gain: relative predicted gain below which a move is not made; half the error of the prediction for the
            present placement, if that is more.
        rounds: proposals until the placement is left alone (until a device drifts).
        evaluations: simulated placements a proposal.
        seed: of the policy's samples.
        policy_path: weights; the shipped ones if empty.
    """

    profile_steps: int = 6
    skip_steps: int = 1
    drift: float = 0.25
    least_gain: float = 0.03
    rounds: int = 2
    evaluations: int = 2000
    seed: int = 0
    policy_path: str = ""


@dataclass(frozen=True)
class Decision:
    """One line of the decision log.

    Attributes:
        step: before which step it holds.
        action: `move`, `keep` (a move proved right), `take back` (it did not), `stay` (no proposal was worth it),
            `refused` (a move was given up by the workers; nothing has changed); where somebody has to approve of moves,
            also `propose`, `decline` (the answer was no) and `withdraw` (the proposal is out of date).
        why: in words.
        ops_moved: ops that change device.
        bytes_moved: bytes that travel.
        predicted_before_s: step time of the placement it leaves, as believed.
        predicted_after_s: step time of the placement it takes, as believed.
        measured_before_s: median measured step time before.
        measured_after_s: median measured step time after, once known.
        predicted_gain_s: seconds gained by the end of the run, cost of moving not subtracted.
        predicted_cost_s: seconds that moving takes.
        source: what found the placement.
        evaluations: simulated placements that were looked at.
        speeds: believed device speeds.
        moves: op name -> [from device, to device].
    """

    step: int
    action: str
    why: str
    ops_moved: int = 0
    bytes_moved: float = 0.0
    predicted_before_s: float | None = None
    predicted_after_s: float | None = None
    measured_before_s: float | None = None
    measured_after_s: float | None = None
    predicted_gain_s: float | None = None
    predicted_cost_s: float | None = None
    source: str = ""
    evaluations: int = 0
    speeds: dict[str, float] = field(default_factory=dict)
    moves: dict[str, list[str]] = field(default_factory=dict)

    def to_record(self) -> dict[str, Any]:
        """The JSON form."""
        return asdict(self)


Approval = Callable[[Decision], bool | None]
"""What somebody says of a proposed move; none as long as nothing is said. It is asked again after every step."""


class Controller:
    """Watches measured steps and decides on placements; lives on worker 0.

    It measures a few steps, corrects its beliefs by them, has the policy propose in a process beside the run, moves if the
    predicted gain over the rest of the run exceeds the cost of moving, measures again, keeps what is faster and takes back
    what is not. Steps beside which the policy thinks are not counted: it takes cores from the run. When the pace of a
    device or of its links drifts, it starts over from there.

    Args:
        beliefs: what the agent thinks of the devices.
        placement: where the run starts.
        op_bytes: bytes that travel with each op, `float64[n]`.
        total_steps: length of the run.
        config: how to decide.
        proposer: where to think; a process of its own if not given.
        approve: without its yes nothing moves, but back to where the run came from; by default nobody is asked.
    """

    def __init__(
        self,
        beliefs: Beliefs,
        placement: Placement,
        op_bytes: NDArray[np.float64],
        total_steps: int,
        config: ControllerConfig | None = None,
        proposer: Proposer | None = None,
        approve: Approval | None = None,
    ):
        self.beliefs = beliefs
        self.placement = placement
        self.op_bytes = op_bytes
        self.total_steps = total_steps
        self.config = config or ControllerConfig()
        self.proposer = proposer or Proposer()
        self.approve = approve
        self.log: list[Decision] = []
        self.pause_s = 0.1
        self._start_over("the run begins")

    @property
    def graph(self) -> Graph:
        """The model's graph."""
        return self.beliefs.graph

    def _start_over(self, reason: str) -> None:
        self._phase = "measure"
        self._round = 0
        self._reason = reason
        self._before: Decision | None = None
        self._previous: Placement | None = None
        self._proposed: tuple[Decision, Proposal] | None = None
        self._fresh()

    def _fresh(self) -> None:
        """Measure from here on."""
        self._times: list[float] = []
        self._skip = self.config.skip_steps
        self.beliefs.forget()

    def observe(self, step: int, report: StepReport) -> Decision | None:
        """Take in a measured step; returns a decision to apply (`move`, `take back`) before step `step + 1`, if any."""
        if self._skip > 0:
            self._skip -= 1
            return None
        if self._phase == "think":
            return self._thought(step)
        if not self.proposer.ready:
            return None
        self._times.append(report.step_time_s)
        self.beliefs.observe(self.placement, report)
        if self._phase == "measure":
            return self._measured(step)
        if self._phase == "wait":
            return self._answered(step)
        if self._phase == "judge":
            return self._judged(step)
        self._watch(step)
        return None

    def place(self, step: int) -> Decision | None:
        """Think at once, before anything is measured, from op times, devices and links alone; returns a move, if any."""
        self._reason = "before the first measurement"
        self._request = self._make_request(step - 1)
        decision = self._weigh(step - 1, answer(self._request))
        if self._phase != "wait":
            self._phase, self._reason = "measure", "the run begins"
        return decision

    def moved(self, pause_s: float) -> None:
        """The last decision has been applied and took `pause_s` seconds."""
        self.pause_s = 0.5 * (self.pause_s + pause_s)
        self._fresh()

    def refused(self, step: int, why: str) -> None:
        """The last decision could not be applied; the run stays where it was."""
        if self._previous is None:
            raise RuntimeError("a move is refused that was never decided on")
        self.placement = self._previous
        self._note(Decision(step + 1, "refused", f"the move was given up: {why}"))
        self._phase = "watch"
        self._fresh()

    def _measured(self, step: int) -> None:
        if len(self._times) >= self.config.profile_steps:
            self.beliefs.correct()
            self._ask(step)

    def _ask(self, step: int) -> None:
        self._request = self._make_request(step)
        self._phase = "think"
        self.proposer.ask(self._request)

    def _make_request(self, step: int) -> Request:
        topology = self.beliefs.topology
        slowest = topology.seconds_per_byte.max()
        return Request(
            clock=self.beliefs.clock,
            start=self.placement,
            move_seconds=self.op_bytes * slowest,
            pause_s=self.pause_s,
            horizon_steps=max(1, self.total_steps - step),
            evaluations=self.config.evaluations,
            seed=self.config.seed + len(self.log),
            policy_path=self.config.policy_path,
        )

    def _thought(self, step: int) -> Decision | None:
        proposal = self.proposer.poll()
        return None if proposal is None else self._weigh(step, proposal)

    def _weigh(self, step: int, proposal: Proposal, approved: bool = False) -> Decision | None:
        """Move if it pays and nobody has to be asked."""
        left = self.total_steps - step - 1
        target: Placement = proposal.placement
        moved = self.placement.moved(target)
        gain = (proposal.start_step_time_s - proposal.predicted_step_time_s) * left
        cost = self._request.pause_of(target.devices)
        relative = 1.0 - proposal.predicted_step_time_s / proposal.start_step_time_s
        facts: dict[str, Any] = {
            "predicted_before_s": proposal.start_step_time_s,
            "predicted_after_s": proposal.predicted_step_time_s,
            "measured_before_s": self._median() if self._times else None,
            "predicted_gain_s": gain,
            "predicted_cost_s": cost,
            "source": proposal.source,
            "evaluations": proposal.evaluations,
            "speeds": self._speeds(),
        }
        least = max(self.config.least_gain, 0.5 * self._error())
        if not len(moved) or relative < least or gain <= cost:
            why = (
                f"{self._reason}; the best proposal would gain {relative:.1%} a step (worth a move from {least:.1%}), "
                f"{max(0.0, gain):.2f} s in all for a cost of {cost:.2f} s"
            )
            self._note(Decision(step + 1, "stay", why, **facts))
            self._phase = "watch"
            return None
        why = f"{self._reason}; predicted {relative:.0%} shorter steps, {gain:.1f} s gained for a cost of {cost:.2f} s"
        if self.approve is None or approved:
            return self._move(step, "move", why, target, facts)
        proposed = self._decision(step, "propose", why, target, facts)
        self._note(proposed)
        self._proposed = proposed, proposal
        self._phase = "wait"
        return self._answered(step)

    def _answered(self, step: int) -> Decision | None:
        """Move once somebody approves, if it still pays; what has drifted meanwhile is another question."""
        if self.approve is None or self._proposed is None:
            raise RuntimeError("an answer is awaited, but nobody was asked")
        proposed, proposal = self._proposed
        drifted = self.beliefs.drift(self.config.drift)
        if drifted:
            self._note(Decision(step + 1, "withdraw", f"{_paces(drifted)} as before; the proposal is out of date"))
            self._drifted(step, drifted)
            return None
        approved = self.approve(proposed)
        if approved is None:
            return None
        if not approved:
            self._note(
                Decision(step + 1, "decline", f"somebody declined what was proposed before step {proposed.step}")
            )
            self._phase = "watch"
            return None
        self._reason = f"approved, as proposed before step {proposed.step}"
        return self._weigh(step, proposal, approved=True)

    def _decision(self, step: int, action: str, why: str, target: Placement, facts: dict[str, Any]) -> Decision:
        moved = self.placement.moved(target)
        names = [device.name for device in self.beliefs.topology.devices]
        return Decision(
            step=step + 1,
            action=action,
            why=why,
            ops_moved=len(moved),
            bytes_moved=float(self.op_bytes[moved].sum()),
            moves={
                self.graph.names[op]: [names[self.placement.devices[op]], names[target.devices[op]]] for op in moved
            },
            **facts,
        )

    def _move(self, step: int, action: str, why: str, target: Placement, facts: dict[str, Any]) -> Decision:
        decision = self._decision(step, action, why, target, facts)
        self._note(decision)
        self._previous = self.placement
        self._before = decision
        self.placement = target
        self._phase = "judge" if action == "move" else "watch"
        self._fresh()
        return decision

    def _judged(self, step: int) -> Decision | None:
        if len(self._times) < self.config.profile_steps:
            return None
        before, previous = self._before, self._previous
        if before is None or previous is None:
            raise RuntimeError("a move is judged that was never made")
        now, then = self._median(), before.measured_before_s or np.inf
        facts = {"measured_before_s": then, "measured_after_s": now, "speeds": self._speeds()}
        drifted = self.beliefs.drift(self.config.drift)
        if now >= then and drifted:
            # Something changed its pace in the meantime; what was measured before says nothing about now.
            self._drifted(step, drifted)
            return None
        if now >= then:
            why = f"measured {now * 1e3:.0f} ms a step after the move, {then * 1e3:.0f} ms before it"
            return self._move(step, "take back", why, previous, facts)
        why = f"measured {then * 1e3:.0f} ms a step before the move, {now * 1e3:.0f} ms after it"
        self._note(Decision(step + 1, "keep", why, **facts))
        self._round += 1
        changed = self.beliefs.correct()
        self._reason = "measured steps corrected the beliefs" if changed else "another look"
        if self._round < self.config.rounds:
            self._ask(step)
        else:
            self._phase = "watch"
        return None

    def _watch(self, step: int) -> None:
        drifted = self.beliefs.drift(self.config.drift)
        if drifted:
            self._drifted(step, drifted)

    def _drifted(self, step: int, drifted: dict[str, float]) -> None:
        recent = self._times[-self.beliefs.window :]
        self.beliefs.correct()
        self._start_over(f"{_paces(drifted)} as before")
        # The window that showed the drift is measurement enough.
        self._times, self._skip = recent, 0
        self._ask(step)

    def _note(self, decision: Decision) -> None:
        self.log.append(decision)

    def _median(self) -> float:
        return float(np.median(self._times)) if self._times else float("inf")

    def _error(self) -> float:
        """How far the prediction for the present placement is off, relative; 0 before anything was measured."""
        if not self._times:
            return 0.0
        return abs(self._median() / self.beliefs.predict(self.placement).step_time_s - 1.0)

    def _speeds(self) -> dict[str, float]:
        devices = self.beliefs.topology.devices
        return {d.name: round(float(s), 4) for d, s in zip(devices, self.beliefs.speed, strict=True)}

    def close(self) -> None:
        """End the thinking process."""
        self.proposer.close()


def _paces(drifted: dict[str, float]) -> str:
    return ", ".join(f"{name} takes {ratio:.2f} times as long" for name, ratio in drifted.items())
