"""Who has started which process."""

from pathlib import Path


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def workers_of(launcher: int) -> list[int]:
    """The workers that run, in the order of their numbers; they are forked from a server."""
    (server,) = [pid for pid in children(launcher) if b"forkserver" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return sorted(children(server))
