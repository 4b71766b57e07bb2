"""`Span`: one bar of a timeline."""

from typing import NamedTuple


class Span(NamedTuple):
    """One bar of a timeline: `lane` is a device, or a link as `source->target`; times in seconds from the step's start."""

    lane: str
    name: str
    start_s: float
    end_s: float
