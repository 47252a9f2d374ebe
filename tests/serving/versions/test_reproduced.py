"""A version of which one replica does not reproduce the golden cases: rejected at its start, kept out later."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from ray import serve

from gtvray.errors import NotReproducedError
from gtvray.runtime import Cluster
from gtvray.serving.replica.golden import GoldenCheck, require_beside_others
from gtvray.serving.versions.manager import require_reproduced
from gtvray.serving.versions.pointer import Pointer, ServedVersion, Versions

pytestmark = pytest.mark.ray
APP = "one-replica-fails"
FAILED = GoldenCheck("failed", "golden case 1: Dice 0.5")


class Model:
    """A replica whose golden cases fail, as in the deployment, if it is started once the folder is full."""

    def __init__(self, folder: str, good: int, versions: str | None) -> None:
        number = 0
        while True:
            try:
                (Path(folder) / str(number)).mkdir()
                break
            except FileExistsError:
                number += 1
        self._golden = GoldenCheck("identical") if number < good else FAILED
        require_beside_others(self._golden, Path(versions) if versions is not None else None)

    async def reproduced(self) -> str:
        self._golden.require()
        return str(serve.get_replica_context().replica_id.unique_id)


def start(folder: Path, replicas: int, good: int, versions: Path | None = None, *, wait: bool = True) -> None:
    options = {"num_replicas": replicas, "ray_actor_options": {"num_cpus": 0}}
    path = str(versions) if versions is not None else None
    application = serve.deployment(Model, name="Model", **options).bind(str(folder), good, path)
    target = serve.RunTarget(application, name=APP, route_prefix=None)
    serve.run_many([target], wait_for_applications_running=wait)


@pytest.fixture
def folder(tmp_path: Path, local_ray: Cluster) -> Iterator[Path]:
    (tmp_path / "started").mkdir()
    yield tmp_path / "started"
    # Other tests of this process start an endpoint of their own.
    serve.shutdown()


@pytest.mark.parametrize("good", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_every_replica_is_asked_before_a_version_is_served(folder: Path, tmp_path: Path, good: int) -> None:
    Pointer(tmp_path / "versions.json").write(Versions(loading=ServedVersion(APP, "1", "digest")))
    start(folder, 3, good, tmp_path / "versions.json")
    if good == 3:
        require_reproduced(APP)
        return
    with pytest.raises(NotReproducedError, match="golden case 1"):
        require_reproduced(APP)


@pytest.mark.slow
def test_replica_that_is_added_to_a_served_version_and_fails_takes_no_request(folder: Path, tmp_path: Path) -> None:
    pointer = Pointer(tmp_path / "versions.json")
    pointer.write(Versions(current=ServedVersion(APP, "1", "digest")))
    start(folder, 2, 2, tmp_path / "versions.json")
    require_reproduced(APP)
    start(folder, 3, 2, tmp_path / "versions.json", wait=False)
    while len(list(folder.iterdir())) < 4:
        # The third replica has failed once when the fourth one is started in its place.
        serve.get_app_handle(APP).reproduced.remote().result(timeout_s=30)
    for _ in range(100):
        serve.get_app_handle(APP).reproduced.remote().result(timeout_s=30)
