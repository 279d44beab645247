"""Which tests run, and in which worker. Fixtures of several rooms are in `tests/fixtures`.

Neither this file nor those import torch before a fixture wants it: pytest's first process, which
only hands tests to the workers, would import it, too.
"""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cases import FAMILIES

try:
    from hypothesis import HealthCheck, settings
except ImportError:  # an environment for other tests
    pass
else:  # a busy machine may take its time for an example
    settings.register_profile(
        "patient", deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
    settings.load_profile("patient")

pytest_plugins = [
    "tests.fixtures.sharing",
    "tests.fixtures.tokenizers",
    "tests.fixtures.checkpoints",
    "tests.fixtures.builds",
    "tests.fixtures.certificates",
    "tests.fixtures.damaged",
    "tests.fixtures.serving",
]

LONGEST = (
    "test_exporter.py",
    "test_build.py",
    "test_supervision.py",
    "test_stamping.py",
    "test_server_life.py",
    "test_pages.py",
    "e2e flant5",
    "test_graphs.py",
    "test_generate.py",
    "test_readme.py",
    "test_families.py",
    "e2e vicuna",
    "test_training.py",
    "test_broken_repositories.py",
    "test_originals.py",
    "test_builder.py",
    "test_calibration.py",
    "test_proving.py",
    "test_synthesize.py",
    "test_demos.py",
    "test_fusion.py",
    "test_crashers.py",
    "test_trace_cache.py",
    "test_calls.py",
    "test_endings.py",
    "test_dry_run.py",
)
"""Groups of tests that take long, the longest first: no worker is then left alone with one.

The first two trace what is small and what is a demo, so that later groups of either worker find it
traced, and no graph is traced by both. A file goes by its name, wherever it is. That a name is
missing here costs time, and nothing else.
"""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--every-example", action="store_true", help="ask all held-out examples")
    parser.addoption("--trace-anew", action="store_true", help="take no graph of an earlier run")
    parser.addoption("--exhaustive", action="store_true", help="run the tests marked exhaustive")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what runs only when it is asked for, and puts first what takes longest."""
    left_out = {item for item in items if not _is_asked_for(item, config)}
    config.hook.pytest_deselected(items=[item for item in items if item in left_out])
    items[:] = [item for item in items if item not in left_out]
    items.sort(key=lambda item: _rank(group_of(item.nodeid)))


def pytest_collection_finish() -> None:
    """Takes what has been imported out of garbage collection, which took half a second a trace."""
    gc.collect()
    gc.freeze()


def _is_asked_for(item: pytest.Item, config: pytest.Config) -> bool:
    for marker in ("cuda_stub", "openai_clients", "vllm"):  # want an environment of their own
        if item.get_closest_marker(marker):
            return marker in config.option.markexpr
    return config.getoption("exhaustive") or not item.get_closest_marker("exhaustive")


def _rank(group: str) -> int:
    name = group.rpartition("/")[2]
    return LONGEST.index(name) if name in LONGEST else len(LONGEST)


def group_of(nodeid: str) -> str:
    """The group of tests that one worker runs: a file's, or those that share a server."""
    file, _, test = nodeid.partition("::")
    if "/e2e/" in file:
        _, _, case = test.partition("[")
        for name in FAMILIES:
            if name in case:
                return f"e2e {name}"
    return file


@pytest.fixture(scope="session", autouse=True)
def interrupts_are_heard() -> Iterator[None]:
    """Here and in what tests start: what a shell runs in the background ignores Ctrl-C."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module", autouse=True)
def in_one_worker(request: pytest.FixtureRequest, shared_directory: Path) -> None:
    """Holds that a file's tests run in one worker: otherwise each makes and serves all of it."""
    file = request.node.nodeid
    if "/e2e/" in file:  # its groups are others
        return
    worker = os.environ.get("PYTEST_XDIST_WORKER", "the only one")
    claim = shared_directory / "files" / file.replace("/", ".")
    claim.parent.mkdir(exist_ok=True)
    try:
        with claim.open("x") as opened:
            opened.write(worker)
    except FileExistsError:
        assert claim.read_text() == worker, f"two workers run tests of {file}"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keeps a group's tests with one worker (`-n`), and the groups in the order of the tests.

    xdist's own `--dist loadgroup` does nothing on pytest 9: it renames tests through an attribute
    that pytest no longer reads.
    """
    from xdist.scheduler import LoadScopeScheduling

    class GroupScheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    config.option.loadscopereorder = False  # by the number of tests, which says little of time
    return GroupScheduling(config, log)
