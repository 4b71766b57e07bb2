"""`Message`: the tensors that travel together, in one buffer, each as it lies in memory."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np
import torch

ALIGN = 16


class Layout(NamedTuple):
    """Shape and type of one tensor of a message."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor's elements."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass
class Message:
    """The buffer that a message's tensors travel in.

    Attributes:
        layouts: of its tensors.
        places: where each tensor begins in the buffer, and where the last ends, bytes.
        buffer: all of them, `uint8`.
        header: its sender's stamp (see `Transport`), and the memory order of each tensor, as `encode_order` gives it,
            `float64[1 + tensors]`; part of the buffer, or sent ahead of it.
    """

    layouts: Sequence[Layout]
    places: Sequence[int]
    buffer: torch.Tensor
    header: np.ndarray

    @property
    def payload(self) -> int:
        """Bytes of the tensors' elements."""
        return payload_bytes(tuple(self.layouts))

    def fill(self, tensors: Sequence[torch.Tensor], non_blocking: bool) -> None:
        """Copy tensors in, each laid out as it lies in memory."""
        for i, (tensor, layout) in enumerate(zip(tensors, self.layouts, strict=True)):
            self.header[1 + i] = put(*self._place(i, layout), tensor, non_blocking)

    def tensors(self) -> list[torch.Tensor]:
        """Its tensors, as views of the buffer."""
        codes = self.header[1:].tolist()
        return [laid_out(*self._place(i, layout), layout.shape, int(codes[i])) for i, layout in enumerate(self.layouts)]

    def _place(self, i: int, layout: Layout) -> tuple[torch.Tensor, int]:
        """The buffer as elements of a tensor's type, and the first of them that is the tensor's."""
        return self.buffer.view(layout.dtype), self.places[i] // layout.dtype.itemsize


def put(memory: torch.Tensor, first: int, tensor: torch.Tensor, non_blocking: bool) -> int:
    """Copy a tensor to element `first` of flat memory of its type, as it lies in its own; returns the code of its order."""
    code = _in_order(tensor.dim()) if tensor.is_contiguous() else encode_order(memory_order(tensor))
    laid_out(memory, first, tensor.shape, code).copy_(tensor, non_blocking=non_blocking)
    return code


def laid_out(memory: torch.Tensor, first: int, shape: tuple[int, ...], code: int) -> torch.Tensor:
    """The tensor that `put` has copied to element `first` of flat memory, as a view."""
    return memory.as_strided(shape, _strides(shape, code), memory.storage_offset() + first)


@lru_cache(4096)
def _strides(shape: tuple[int, ...], code: int) -> tuple[int, ...]:
    """Strides of a dense tensor whose dimensions lie in memory in a coded order."""
    strides, step = [0] * len(shape), 1
    for dimension in reversed(decode_order(code, len(shape))):
        strides[dimension] = step
        step *= max(1, shape[dimension])
    return tuple(strides)


def header_bytes(count: int) -> int:
    """Bytes before the tensors: the stamp, and a code of each tensor's memory order."""
    return -(-8 * (1 + count) // ALIGN) * ALIGN


@lru_cache(4096)
def offsets(layouts: tuple[Layout, ...], header: int) -> list[int]:
    """Where each tensor of a message begins behind a header of so many bytes, and where the last ends."""
    places = [header]
    for layout in layouts:
        places.append(places[-1] + -(-layout.nbytes // ALIGN) * ALIGN)
    return places


@lru_cache(4096)
def payload_bytes(layouts: tuple[Layout, ...]) -> int:
    """Bytes of the tensors' elements."""
    return sum(layout.nbytes for layout in layouts)


def framed(layouts: Sequence[Layout], places: Sequence[int], buffer: torch.Tensor) -> Message:
    """A message whose header and tensors are in `buffer`."""
    return Message(layouts, places, buffer, buffer[: 8 * (1 + len(layouts))].numpy().view(np.float64))


def layouts_of(tensors: Sequence[torch.Tensor]) -> tuple[Layout, ...]:
    """Shape and type of each tensor."""
    return tuple(Layout(tuple(tensor.shape), tensor.dtype) for tensor in tensors)


def memory_order(tensor: torch.Tensor) -> list[int]:
    """Dimensions from outermost to innermost in memory, if the elements fill their memory; else in their own order.

    The receiver lays a tensor out as the sender did, so that the same kernels run on it.
    """
    strides = tensor.stride()
    order = sorted(range(tensor.dim()), key=lambda d: (-strides[d], d))
    return order if tensor.permute(order).is_contiguous() else list(range(tensor.dim()))


def encode_order(order: Sequence[int]) -> int:
    """A permutation of fewer than 16 dimensions as one number."""
    return sum(d << (4 * i) for i, d in enumerate(order))


@cache
def _in_order(dimensions: int) -> int:
    """The code of a contiguous tensor."""
    return encode_order(range(dimensions))


def decode_order(code: int, dimensions: int) -> list[int]:
    """The inverse of `encode_order`."""
    return [(code >> (4 * i)) & 15 for i in range(dimensions)]
