"""What runs beside what: the two processes of `make test` share the files, long ones first; quiet ones come last, in one."""

import os
import signal
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

ROOT = Path(__file__).parent.parent

if "PYTEST_XDIST_WORKER" in os.environ:
    # Before torch is imported: a core for each process.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# The same examples in every run; `--hypothesis-profile=explore` looks for others.
settings.register_profile("same", derandomize=True)
settings.register_profile("explore", derandomize=False)
settings.load_profile("same")


@pytest.fixture
def ctrl_c_interrupts() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt, and ends processes started meanwhile, also where tests run in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@cache
def is_quiet(path: Path) -> bool:
    """Whether a file measures time, or waits for a limited time: those with a test marked `quiet`."""
    return "pytest.mark.quiet" in path.read_text()


@cache
def is_long(path: Path) -> bool:
    """Whether all tests of a file are slow."""
    return "pytestmark = [pytest.mark.slow" in path.read_text()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: (is_quiet(item.path), not is_long(item.path)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    # The plugin's own groups are lost with pytest 9.2, which no longer reads the ids that it changes.
    from xdist.scheduler import LoadScopeScheduling

    class Files(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "quiet" if is_quiet(ROOT / file) else file

    return Files(config, log)
