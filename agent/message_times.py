"""How long messages were on their way between real devices, and how long they should have been."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..placement.clock import StepReport
from ..placement.first_messages import FirstMessages
from ..placement.topology import Topology

Floats = NDArray[np.float64]
Link = tuple[int, int]
"""Source and target."""

# Relative error of the time of a message, and the seconds by which one may be late because a worker has to be woken.
MESSAGE_NOISE, LATE_S = 0.15, 5e-4


def timed_links(reports: Sequence[StepReport], topology: Topology) -> list[tuple[Link, ...]]:
    """Links of which every report has a time; both directions between hosts together, as their clocks differ."""
    count, hosts = topology.num_devices, [device.host for device in topology.devices]
    known = np.full((count, count), bool(reports))
    for report in reports:
        known &= False if report.first_messages is None else np.isfinite(report.first_messages.seconds)
    together: list[tuple[Link, ...]] = []
    for source, target in np.argwhere(known).tolist():
        if hosts[source] == hosts[target]:
            together.append(((source, target),))
        elif source < target and known[target, source]:
            together.append(((source, target), (target, source)))
    return together


def measured_s(links: tuple[Link, ...], report: StepReport) -> float:
    """Seconds that the first messages over these links were on their way, one after the other."""
    messages = _messages(report)
    return float(sum(messages.seconds[link] for link in links))


def believed_s(link: Link, report: StepReport, topology: Topology) -> float:
    """Seconds that the first message of a report should be on its way."""
    messages = _messages(report)
    return float(topology.latency_s[link] + messages.num_bytes[link] * topology.seconds_per_byte[link])


def message_noise(measured: Floats) -> Floats:
    """Relative standard deviation of measured seconds."""
    return np.hypot(MESSAGE_NOISE, LATE_S / np.maximum(measured, 1e-9))


def _messages(report: StepReport) -> FirstMessages:
    if report.first_messages is None:
        raise ValueError("the report has no times of messages")
    return report.first_messages
