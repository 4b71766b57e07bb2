"""What runs beside what: `make test` has two processes that share the files of tests; quiet ones run last, in one of them."""

import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
EXECUTOR = ROOT / "tests" / "placement" / "executor"

if "PYTEST_XDIST_WORKER" in os.environ:
    # Before torch is imported: a core for each process.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@cache
def is_quiet(path: Path) -> bool:
    """Whether a file starts workers or measures time: those of the executor, and those with a test marked `quiet`."""
    return EXECUTOR in path.parents or "pytest.mark.quiet" in path.read_text()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: is_quiet(item.path))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    # The plugin's own groups are lost with pytest 9.2, which no longer reads the ids that it changes.
    from xdist.scheduler import LoadScopeScheduling

    class Files(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "quiet" if is_quiet(ROOT / file) else file

    return Files(config, log)
