"""Two hosts on one machine: network namespaces joined by a cable (a veth pair) of limited bandwidth."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

BITS_PER_S = 400e6
ADDRESSES = ("10.231.77.1", "10.231.77.2")


def why_not() -> str:
    """Why this machine cannot have them; empty if it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if not (shutil.which("ip") and shutil.which("tc")):
        return "needs iproute2 (ip and tc)"
    name = f"segue-try-{os.getpid()}"
    try:
        with _namespace(name):
            _run("ip", "-n", name, "link", "add", "try0", "type", "veth", "peer", "name", "try1")
            _limit(name, "try0")
    except subprocess.CalledProcessError as error:
        return f"{' '.join(error.cmd)}: {error.stderr.strip()}"
    return ""


@dataclass(frozen=True)
class Hosts:
    """Names of the two namespaces and of the ends of the cable in them."""

    names: tuple[str, str]
    cables: tuple[str, str]

    def start(self, host: int, command: Sequence[str], environment: dict[str, str], log: Path) -> subprocess.Popen:
        """Run a command on a host, what it prints into a file."""
        own = {"GLOO_SOCKET_IFNAME": self.cables[host], "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        with log.open("w") as file:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.names[host], *command],
                env={**os.environ, **own, **environment},
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    def limit(self, bits_per_s: float) -> None:
        """From now on the cable takes so many bits a second in each direction."""
        for name, cable in zip(self.names, self.cables, strict=True):
            _limit(name, cable, bits_per_s)

    def cut(self) -> None:
        """Pull the cable."""
        _run("ip", "-n", self.names[0], "link", "set", self.cables[0], "down")


def torchrun(host: int, port: int) -> list[str]:
    """The command that starts one worker of two on a host; script or module come behind it."""
    return [
        *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"),
        *("--rdzv-backend", "c10d", "--rdzv-endpoint", f"{ADDRESSES[0]}:{port}", "--rdzv-id", "segue"),
        # Namespaces share the machine's name, by which torchrun would tell its hosts apart.
        *("--local-addr", ADDRESSES[host], "--rdzv-conf", f"is_host={int(host == 0)}"),
    ]


@contextmanager
def two_hosts() -> Iterator[Hosts]:
    """Make the hosts and their cable; nothing is left of them and of their processes afterwards."""
    number = os.getpid()
    names, cables = (f"segue-{number}-a", f"segue-{number}-b"), (f"sga{number}", f"sgb{number}")
    with _namespace(names[0]), _namespace(names[1]):
        ends = (cables[0], "netns", names[0], "type", "veth", "peer", "name", cables[1], "netns", names[1])
        _run("ip", "link", "add", *ends)
        for name, cable, address in zip(names, cables, ADDRESSES, strict=True):
            _run("ip", "-n", name, "addr", "add", f"{address}/24", "dev", cable)
            _run("ip", "-n", name, "link", "set", "lo", "up")
            _run("ip", "-n", name, "link", "set", cable, "up")
            _limit(name, cable)
        yield Hosts(names, cables)


@contextmanager
def _namespace(name: str) -> Iterator[None]:
    _run("ip", "netns", "add", name)
    try:
        yield
    finally:
        deadline = time.monotonic() + 20
        while (left := _run("ip", "netns", "pids", name).split()) and time.monotonic() < deadline:
            for pid in left:
                with _gone_already():
                    os.kill(int(pid), signal.SIGKILL)
            time.sleep(0.1)
        _run("ip", "netns", "del", name)


@contextmanager
def _gone_already() -> Iterator[None]:
    try:
        yield
    except ProcessLookupError:
        return


def _limit(name: str, cable: str, bits_per_s: float = BITS_PER_S) -> None:
    bucket = ("rate", f"{bits_per_s / 1e6:g}mbit", "burst", "32kb", "latency", "500ms")
    _run("tc", "-n", name, "qdisc", "replace", "dev", cable, "root", "tbf", *bucket)


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
