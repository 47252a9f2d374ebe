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
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the files whose tests all use the session's cluster in one process, so that there is one cluster.

    Other files with Ray are divided among both processes; the tests of a file share fixtures that take long. With Ray,
    a test takes up to 70 s beside those of the other process, and twice that on a slow machine; slow ones take several
    times as long.
    """
    with_ray = [item for item in items if item.get_closest_marker("ray") is not None]
    own = {item.path for item in with_ray if "local_ray" not in getattr(item, "fixturenames", ())}
    for item in with_ray:
        item.add_marker(pytest.mark.xdist_group(f"ray-{item.path.stem}" if item.path in own else "ray"))
        if item.get_closest_marker("timeout") is None:
            slow = item.get_closest_marker("slow") is not None
            item.add_marker(pytest.mark.timeout(600 if slow else 240))


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
