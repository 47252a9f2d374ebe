"""The version manager with a stand-in for Serve: errors of Ray leave a state from which the next check continues."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import RayActorError
from ray.serve._private.common import DeploymentStatus, DeploymentStatusTrigger, ReplicaState
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview, DeploymentStatusOverview

from gtvray.config import ServingConfig
from gtvray.errors import FailureError, ResourceError
from gtvray.serving import Candidate
from gtvray.serving.arguments import AppArguments
from gtvray.serving.versions import manager as module
from gtvray.serving.versions.manager import VersionManager
from gtvray.serving.versions.pointer import Pointer, Versions

FIRST, SECOND = (Candidate(number, number * 64, Path("bundle"), None) for number in "12")


class Serve:
    """A stand-in for Ray Serve, whose controller can be dead and whose applications can fail to start."""

    RunTarget = staticmethod(lambda application, name, route_prefix: name)

    def __init__(self) -> None:
        self.applications: dict[str, Any] = {}
        self.started: list[str] = []
        self.dead = False
        self.fails: set[str] = set()
        # Version at whose start the controller dies.
        self.kills = ""

    def run_many(self, names: list[str], wait_for_applications_running: bool) -> None:
        assert not wait_for_applications_running
        digest = names[0].split("-")[2]
        self.dead = self.dead or digest[:1] == self.kills
        self._require_alive()
        self.started.append(digest[0])
        status = ApplicationStatus.DEPLOY_FAILED if digest[0] in self.fails else ApplicationStatus.RUNNING
        self.applications[names[0]] = ApplicationStatusOverview(status, "it fails", 0.0, {})

    def status(self) -> Serve:
        self._require_alive()
        return self

    def delete(self, name: str, _blocking: bool) -> None:
        self._require_alive()
        self.applications.pop(name, None)

    def _require_alive(self) -> None:
        if self.dead:
            raise RayActorError


class Registry:
    """A stand-in for the registry; records rejected versions."""

    def __init__(self) -> None:
        self.champion, self.rejected = FIRST, list[str]()

    def find(self) -> Candidate:
        return self.champion

    def reject(self, candidate: Candidate, _: str) -> None:
        self.rejected.append(candidate.version)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Serve:
    fake = Serve()
    monkeypatch.setattr(module, "serve", fake)
    monkeypatch.setattr(module, "build_model_app", lambda args: args)
    monkeypatch.setattr(module, "require_reproduced", lambda app: None)
    monkeypatch.setattr(module, "missing_resources", lambda needed: {"expected": "1 CPU", "found": "0 CPU free"})
    monkeypatch.setattr(module, "_POLL_S", 0.0)
    return fake


@pytest.fixture
def registry() -> Registry:
    return Registry()


@pytest.fixture
def manager(cluster: Serve, registry: Registry, tmp_path: Path) -> VersionManager:
    """A manager that serves the first version, and has no resources for two."""
    args = AppArguments(serving=ServingConfig(interrupt_to_swap=True))
    manager = VersionManager(args, Pointer(tmp_path / "versions.json"), lambda _: 0, registry.reject)
    manager._step(registry.find)
    registry.champion = SECOND
    return manager


def served(tmp_path: Path) -> str | None:
    versions = Pointer(tmp_path / "versions.json").read()
    assert versions.loading is None
    return versions.current.version if versions.current is not None else None


def test_controller_that_dies_in_a_swap_does_not_block_the_next_one(
    cluster: Serve, registry: Registry, manager: VersionManager, tmp_path: Path
) -> None:
    cluster.kills = "2"
    with pytest.raises(RayActorError):
        manager._step(registry.find)
    assert served(tmp_path) is None
    assert registry.rejected == []
    cluster.dead, cluster.kills = False, ""
    manager._step(registry.find)
    assert served(tmp_path) == "2"
    assert len(cluster.applications) == 1, "nothing of the aborted swap is left"


def test_error_of_ray_restores_the_stopped_version(
    cluster: Serve, registry: Registry, manager: VersionManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_second(app: str) -> None:
        if "-222222222222-" in app:
            raise RayActorError

    monkeypatch.setattr(module, "require_reproduced", fail_second)
    with pytest.raises(RayActorError):
        manager._step(registry.find)
    assert (served(tmp_path), registry.rejected, len(cluster.applications)) == ("1", [], 1)


def test_stopped_version_is_restored_after_a_rejection_even_if_that_fails_at_first(
    cluster: Serve, registry: Registry, manager: VersionManager, tmp_path: Path
) -> None:
    cluster.fails = {"1", "2"}
    with pytest.raises(FailureError):
        manager._step(registry.find)
    assert (served(tmp_path), registry.rejected) == (None, ["2"])
    cluster.fails = {"2"}
    manager._step(registry.find)
    assert served(tmp_path) == "1"
    assert cluster.started == ["1", "2", "1", "1"], "the rejected version is not tried again"


def test_resources_that_cannot_be_asked_for_leave_no_version_loading(
    registry: Registry, manager: VersionManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> dict[str, str]:
        raise RayActorError

    monkeypatch.setattr(module, "missing_resources", fail)
    with pytest.raises(RayActorError):
        manager._step(registry.find)
    assert served(tmp_path) == "1"


def start_again(cluster: Serve, registry: Registry, folder: Path) -> VersionManager:
    """The manager of an endpoint whose earlier process served the first version; the second one is champion."""
    for name in ("bundle", "golden"):
        (folder / name).mkdir()
    registry.champion = Candidate("1", "1" * 64, folder / "bundle", folder / "golden", "a reason")

    def start() -> VersionManager:
        Pointer(folder / "versions.json").write(Versions())
        pointer = Pointer(folder / "versions.json")
        return VersionManager(AppArguments(), pointer, lambda _: 0, registry.reject, folder / "last.json")

    start()._step(registry.find)
    cluster.applications.clear()
    registry.champion = SECOND
    return start()


def test_after_a_restart_with_a_broken_champion_the_last_version_is_served(
    cluster: Serve, registry: Registry, tmp_path: Path
) -> None:
    again = start_again(cluster, registry, tmp_path)
    cluster.fails = {"2"}
    with pytest.raises(FailureError):
        again._step(registry.find)
    assert (served(tmp_path), registry.rejected) == ("1", ["2"])
    again.require_hopeful()
    assert [each.version for each in again.versions.rejected] == ["2"]


def test_after_a_restart_the_champion_comes_first(cluster: Serve, registry: Registry, tmp_path: Path) -> None:
    start_again(cluster, registry, tmp_path)._step(registry.find)
    assert served(tmp_path) == "2"
    assert cluster.started == ["1", "2"]


def test_after_a_restart_without_the_registry_the_last_version_is_served_until_it_responds(
    cluster: Serve, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "missing_resources", lambda _: {})
    again = start_again(cluster, registry, tmp_path)

    def find() -> Candidate | None:
        raise ResourceError("cannot reach MLflow")

    for _ in range(2):
        with pytest.raises(ResourceError):
            again._step(find)
    assert (served(tmp_path), cluster.started) == ("1", ["1", "1"])
    again._step(registry.find)
    assert served(tmp_path) == "2"


def test_after_a_restart_a_version_whose_files_are_gone_is_not_started(
    cluster: Serve, registry: Registry, tmp_path: Path
) -> None:
    start_again(cluster, registry, tmp_path)
    (tmp_path / "golden").rmdir()
    pointer = Pointer(tmp_path / "versions.json")
    again = VersionManager(AppArguments(), pointer, lambda _: 0, registry.reject, tmp_path / "last.json")
    cluster.fails = {"2"}
    with pytest.raises(FailureError):
        again._step(registry.find)
    assert served(tmp_path) is None
    with pytest.raises(FailureError, match="could not be started"):
        again.require_hopeful()


@pytest.mark.parametrize(
    ("message", "states", "text"),
    [
        ("a replica\n\nfailed", {}, "a replica failed"),
        ("", {ReplicaState.STARTING: 2, "RUNNING": 0}, "Model updating (2 starting)"),
        ("", {"RUNNING": 1, "STARTING": 1}, "Model updating (1 running, 1 starting)"),
        ("", {}, "deploying"),
    ],
)
def test_status_without_a_message_names_the_states_of_replicas(message: str, states: Any, text: str) -> None:
    """Serve reports states as text, and declares them as an enumeration."""
    trigger = DeploymentStatusTrigger.CONFIG_UPDATE_STARTED
    model = DeploymentStatusOverview(DeploymentStatus.UPDATING, trigger, states, "")
    overview = ApplicationStatusOverview(ApplicationStatus.DEPLOYING, message, 0.0, {"Model": model})
    assert module.status_text(overview) == text
