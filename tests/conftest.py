"""Fixtures every test may use. One local Ray cluster serves the whole session."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from gtvray.runtime import Cluster

# A job that a shell put into the background ignores Ctrl-C, and so would every process the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Ray starts its workers with niceness 15: they would get 3 % of a CPU that another process of the tests keeps busy, and
# take minutes to start.
os.environ.setdefault("RAY_worker_niceness", "0")

# No deadline, because the duration of an example depends on the machine. `make test` draws the same examples every
# time, so that failures are caused by the change under test; `make test-all` draws new ones.
settings.register_profile("gtvray", deadline=None, derandomize=True)
settings.register_profile("random", deadline=None)
settings.load_profile("gtvray")

REPOSITORY = Path(__file__).resolve().parent.parent


# Before the hook of pytest-xdist, which reads the marks.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Divide the tests among processes, the longest groups first.

    Without the slow tests, files whose tests all use the session's cluster run in one process, so that there is one
    cluster; any other file with Ray runs in one process, as its tests share fixtures that take long. With the slow
    tests, each file that has some, or Ray, runs in one process, which has a cluster of its own.

    With Ray, a test takes up to 70 s beside those of the other process, and twice that on a slow machine; slow ones
    take several times as long.
    """
    without_slow = "not slow" in config.option.markexpr
    grouped = {item.path for item in items if _has(item, "ray") or (_has(item, "slow") and not without_slow)}
    own = {item.path for item in items if _has(item, "ray") and "local_ray" not in getattr(item, "fixturenames", ())}
    for item in items:
        if item.path in grouped and (_has(item, "ray") or not without_slow):
            shared = without_slow and item.path not in own
            item.add_marker(pytest.mark.xdist_group("ray" if shared else f"{item.path.parent.name}-{item.path.stem}"))
        if (_has(item, "ray") or _has(item, "slow")) and not _has(item, "timeout"):
            item.add_marker(pytest.mark.timeout(600 if _has(item, "slow") else 240))
    items.sort(key=lambda item: item.path not in grouped)


def _has(item: pytest.Item, mark: str) -> bool:
    return item.get_closest_marker(mark) is not None


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name a test after its argument, not after long bytes: an archive contains the time at which it was made.

    Both processes of `make test` must collect the same names.
    """
    return argname if isinstance(val, bytes) and len(val) > 24 else None


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real volumes, which are stored beside the repository and never in it."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("real volumes are not here (../shared/data)")
    return folder


@pytest.fixture(scope="session")
def real_cases(shared_data: Path) -> Path:
    """Real head-and-neck planning CTs in StructSeg's layout."""
    return shared_data / "openkbp_ptv70" / "train"


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of twelve phantoms in StructSeg's layout; not to be written to."""
    from gtvray.datasets import write_phantoms

    folder = tmp_path_factory.mktemp("data") / "phantoms"
    write_phantoms(folder, count=12, seed=0)
    return folder


@pytest.fixture(scope="session")
def local_ray() -> Iterator[Cluster]:
    """The session's Ray cluster, two CPUs."""
    from gtvray.runtime import connect

    with connect(cpus=2) as cluster:
        yield cluster
