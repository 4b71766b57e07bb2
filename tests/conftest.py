"""What runs beside what: `make test` has two processes that share the files of tests; `quiet` tests run last and alone."""

import os
from pathlib import Path

import pytest

EXECUTOR = Path(__file__).parent / "placement" / "executor"

BESIDE_ANOTHER = "PYTEST_XDIST_WORKER" in os.environ

if BESIDE_ANOTHER:
    # Before torch is imported: a core for each process.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def is_quiet(item: pytest.Item) -> bool:
        return EXECUTOR in item.path.parents or item.get_closest_marker("quiet") is not None

    items.sort(key=is_quiet)
    if BESIDE_ANOTHER:
        for item in items:
            item.add_marker(pytest.mark.xdist_group("quiet" if is_quiet(item) else item.path.stem))
