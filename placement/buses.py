"""Links of declared GPUs: PCIe lanes and switches, CPU sockets, NVLink, network cards."""

from dataclasses import dataclass

from .gpus import GPUS
from .topology import Link

# Messages never get all of a bus: packet headers and flow control take the rest.
BUS_SHARE = 0.8

# Between the sockets of a server, one way: one UPI link of 10.4 GT/s, which is what messages of one pair of GPUs travel on.
SOCKETS_BYTES_PER_S = 20.8e9

# One NVLink of the second to fourth generation, one way; for GPUs that are not in the table.
ASSUMED_NVLINK_BYTES_PER_S = 25e9

# Seconds that a message takes besides its bytes, rounded from what point-to-point tests of NCCL and MPI commonly show.
NVLINK_LATENCY_S = 5e-6
SWITCH_LATENCY_S = 8e-6
BRIDGE_LATENCY_S = 1e-5
SOCKETS_LATENCY_S = 1.5e-5
NETWORK_LATENCY_S = 3e-5


@dataclass(frozen=True)
class Slot:
    """Where a GPU sits. Messages of several GPUs meet where their slots name the same thing.

    Attributes:
        device: the device's name.
        lane: name of its own PCIe lanes, `host0.gpu1`; messages out and in take turns on `host0.gpu1.up` and `.down`.
        pcie_bytes_per_s: peak of those lanes, one way.
        switch: PCIe switch that it shares with others; empty if it sits at the CPU.
        socket: CPU socket.
        host: machine.
        nic_bytes_per_s: peak of the machine's network card, one way.
    """

    device: str
    lane: str
    pcie_bytes_per_s: float
    switch: str = ""
    socket: str = ""
    host: str = ""
    nic_bytes_per_s: float = 0.0


def bus_link(a: Slot, b: Slot) -> Link:
    """The way from `a` to `b` without NVLink; its bandwidth is that of the narrowest part, less the headers' share."""
    bandwidth = min(a.pcie_bytes_per_s, b.pcie_bytes_per_s)
    if a.host != b.host:
        latency = NETWORK_LATENCY_S
        bandwidth = min(bandwidth, a.nic_bytes_per_s, b.nic_bytes_per_s)
        between = [f"{a.host}.nic.up", f"{b.host}.nic.down"]
    elif a.switch and a.switch == b.switch:
        latency, between = SWITCH_LATENCY_S, []
    else:
        latency = BRIDGE_LATENCY_S
        between = [f"{a.switch}.up"] if a.switch else []
        if a.socket != b.socket:
            latency = SOCKETS_LATENCY_S
            bandwidth = min(bandwidth, SOCKETS_BYTES_PER_S)
            between.append(f"{a.socket}->{b.socket}")
        between += [f"{b.switch}.down"] if b.switch else []
    channels = (f"{a.lane}.up", *between, f"{b.lane}.down")
    return Link(a.device, b.device, latency, BUS_SHARE * bandwidth, channels)


def nvlink(a: Slot, b: Slot, bytes_per_s: float, *, switched: bool) -> Link:
    """NVLinks from `a` to `b` of `bytes_per_s` together, one way.

    With an NVSwitch between, all messages out of `a` take turns on its links, and so do all into `b`; without, the links join
    just these two.
    """
    channels = (f"{a.lane}.nvlink.up", f"{b.lane}.nvlink.down") if switched else ()
    return Link(a.device, b.device, NVLINK_LATENCY_S, BUS_SHARE * bytes_per_s, channels)


def one_nvlink_bytes_per_s(product: str) -> float:
    """Peak of one NVLink of a product of `GPUS`, one way; of any other, what is common."""
    gpu = GPUS.get(product)
    return gpu.nvlink_bytes_per_s / gpu.nvlinks if gpu and gpu.nvlinks else ASSUMED_NVLINK_BYTES_PER_S
