"""`Pilot`: lets the agent move a run's operators, in the user's own training loop."""

from collections.abc import Callable

import torch
import torch.distributed as dist

from ..placement.costs import part_sizes
from ..placement.executor import Executor, MoveFailed, MoveReport
from .beliefs import Beliefs
from .controller import Approval, Controller, ControllerConfig, Decision


class Pilot:
    """Watches the measured steps of an executor and moves its operators where it pays, between two steps.

        pilot = Pilot(executor, total_steps=len(loader))
        pilot.place()
        for batch in loader:
            loss = executor.step(batch)
            pilot.after_step()

    Worker 0 decides; every worker makes a pilot and calls it after every step, in the same order.

    Args:
        executor: the run.
        total_steps: length of the run, `executor.steps` so far included; a move has to pay until then.
        config: how to decide.
        on_decision: called on worker 0 with every decision as it is made.
        approve: called on worker 0 with a proposed move, again after every step until it says yes or no instead of none; by
            default nobody is asked. What proved wrong is taken back without a question.

    Attributes:
        log: the decisions so far, on worker 0.
        total_steps: as given; may be changed while the run goes on.
    """

    def __init__(
        self,
        executor: Executor,
        total_steps: int,
        config: ControllerConfig | None = None,
        on_decision: Callable[[Decision], None] | None = None,
        approve: Approval | None = None,
    ):
        self.executor = executor
        self.total_steps = total_steps
        self.log: list[Decision] = []
        self._on_decision = on_decision
        self._controller = _controller(executor, total_steps, config, approve) if executor.rank == 0 else None

    def place(self) -> MoveReport | None:
        """Move at once to what the policy makes of op times, devices and links, before a step is measured.

        The run waits for it, a few seconds. Returns what the move did, if one was made.
        """
        step, controller = self.executor.steps, self._controller
        decision = None if controller is None else controller.place(step)
        return self._apply(step - 1, decision)

    def after_step(self) -> MoveReport | None:
        """Take in the step that has just been run; returns what a move did, if one was made."""
        step = self.executor.steps - 1
        return self._apply(step, self._decide(step))

    def _apply(self, step: int, decision: Decision | None) -> MoveReport | None:
        controller = self._controller
        if controller is not None:
            self._tell(controller)
        order = torch.tensor([decision is not None])
        dist.broadcast(order, src=0)
        if not order.item():
            return None
        # The others' placement is worker 0's.
        try:
            report = self.executor.apply(self.executor.placement if controller is None else controller.placement)
        except MoveFailed as error:
            if controller is not None:
                controller.refused(step, str(error))
                self._tell(controller)
            return None
        if controller is not None:
            controller.moved(report.pause_s)
        return report

    def _decide(self, step: int) -> Decision | None:
        controller, report = self._controller, self.executor.report
        if controller is None or report is None or step + 1 >= self.total_steps or self.executor.pending:
            return None
        controller.total_steps = self.total_steps
        return controller.observe(step, report)

    def _tell(self, controller: Controller) -> None:
        for decision in controller.log[len(self.log) :]:
            self.log.append(decision)
            if self._on_decision is not None:
                self._on_decision(decision)

    def close(self) -> None:
        """End the process in which the policy thinks."""
        if self._controller is not None:
            self._controller.close()


def _controller(
    executor: Executor, total_steps: int, config: ControllerConfig | None, approve: Approval | None
) -> Controller:
    sizes = tuple(part_sizes(executor.batch_size, executor.micro_size))
    beliefs = Beliefs(
        executor.graph,
        executor.topology,
        executor.profile,
        sizes,
        executor.optimizer_state_per_parameter,
        clipping=executor.max_grad_norm is not None,
    )
    return Controller(beliefs, executor.placement, executor.op_bytes, total_steps, config, approve=approve)
