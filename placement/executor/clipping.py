"""Gradient clipping by the norm of all gradients of all workers."""

from collections.abc import Sequence

import torch
import torch.distributed as dist

from ..errors import SegueError
from .state import State


def check_max_norm(max_norm: float | None) -> None:
    """Raise `SegueError` unless gradients can be clipped to this norm."""
    if max_norm is not None and not max_norm > 0:
        raise SegueError(f"max_grad_norm must be > 0 (infinity only measures the norm), got {max_norm}")


def clip_gradients(state: State, max_norm: float, ready: Sequence[float]) -> tuple[float, float]:
    """Scale all gradients such that their common norm is at most `max_norm`; every worker calls it.

    The norm is `torch.nn.utils.clip_grad_norm_`'s, the 2-norm of the parameters' norms (Pascanu et al., "On the difficulty
    of training recurrent neural networks", ICML 2013). Every worker takes it over the same vector, one entry for each
    trained parameter in the model's order, so that it has the same bits whatever the placement.

    Args:
        state: what the worker trains.
        max_norm: the greatest norm.
        ready: for each worker, when what this one has to say would be there (`time.monotonic`).

    Returns:
        The norm before clipping, and when the last worker's part of it has arrived.
    """
    gradients = state.gradients()
    names = [name for name in state.home if name in state.program.trainable]
    own = torch.zeros(len(names), dtype=torch.float64)
    mine = [place for place, name in enumerate(names) if name in gradients]
    if mine:
        own[mine] = torch.stack([torch.linalg.vector_norm(gradients[names[place]]).double() for place in mine]).cpu()
    own = torch.cat([own, torch.tensor(ready, dtype=torch.float64)])
    table = torch.empty(dist.get_world_size(), len(own), dtype=torch.float64)
    dist.all_gather(list(table), own)
    # A parameter's norm comes from its one owner; the others send zeros.
    norms = table[:, : len(names)].sum(0)
    if all(state.initial[name].dtype != torch.float64 for name in names):
        norms = norms.float()
    norm = torch.linalg.vector_norm(norms)
    share = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for gradient in gradients.values():
        gradient.mul_(share.to(gradient.device))
    return norm.item(), table[:, len(names) + dist.get_rank()].max().item()
