"""Killed or hanging workers and a killed controller: the loss curve equals that of an undisturbed training.

Faults are injected by failpoints, once over all processes, and do not depend on time.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from gtvray.config import Config, with_dotted
from gtvray.data import CachedCase
from gtvray.errors import ResourceError, TrainingError
from gtvray.failpoints import ONCE_VARIABLE, VARIABLE
from gtvray.runtime import Cluster
from gtvray.training import EpochReport, fit_distributed

# Raised by Ray Data when Ray Train imports it.
pytestmark = [
    pytest.mark.filterwarnings(r"ignore:`use_\w+` is deprecated"),
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(600),
]
_FIGURES = ("epoch", "train_loss", "selection_dsc", "best_dsc", "lr", "retries")


@pytest.fixture(scope="module")
def pair(config: Config) -> Config:
    """Four epochs of three steps on two workers."""
    return with_dotted(config, {"training.num_workers": 2})


@pytest.fixture(scope="module")
def undisturbed(
    local_ray: Cluster,
    pair: Config,
    train: list[CachedCase],
    selection: list[CachedCase],
    tmp_path_factory: pytest.TempPathFactory,
) -> list[tuple[float, ...]]:
    return figures(list(fit_distributed(pair, train, selection, tmp_path_factory.mktemp("undisturbed"))))


@pytest.fixture
def armed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Return a function that arms failpoints in the workers and returns the folder that lists those that fired."""

    def arm(text: str) -> Path:
        once = tmp_path / "once"
        once.mkdir()
        monkeypatch.setenv(VARIABLE, text)
        monkeypatch.setenv(ONCE_VARIABLE, str(once))
        return once

    return arm


def figures(reports: list[EpochReport]) -> list[tuple[float, ...]]:
    return [tuple(getattr(report, name) for name in _FIGURES) for report in reports]


def assert_nothing_left() -> None:
    """Require that all CPUs are free and no placement group is left."""
    from ray.util.placement_group import placement_group_table

    for _ in range(600):
        standing = [group for group in placement_group_table().values() if group["state"] != "REMOVED"]
        if not standing and ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"]:
            return
        time.sleep(0.1)
    raise AssertionError(f"left over: {standing}, {ray.available_resources()}")


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        # In the middle of an epoch; after an epoch, before it is reported; while its checkpoint is written.
        ("training.before_step@1:5=kill", "its process died"),
        ("training.before_report@0:2=kill", "its process died"),
        ("checkpoint.write:2=kill", "its process died"),
        ("training.before_step@0:8=raise", "failpoint training.before_step@0:8=raise"),
    ],
)
def test_training_survives_a_lost_worker(
    fault: str,
    cause: str,
    armed: Callable[[str], Path],
    pair: Config,
    train: list[CachedCase],
    selection: list[CachedCase],
    undisturbed: list[tuple[float, ...]],
    tmp_path: Path,
) -> None:
    once = armed(fault)
    reports = list(fit_distributed(pair, train, selection, tmp_path / "run"))
    assert len(list(once.iterdir())) == 1, "the failpoint fired"
    assert figures(reports) == undisturbed
    (note,) = [report.notes for report in reports if report.notes]
    assert "workers restarted after epoch" in note
    assert cause in note
    assert not list((tmp_path / "run").glob(".partial-*"))
    assert_nothing_left()


def test_training_survives_a_hanging_worker(
    armed: Callable[[str], Path],
    pair: Config,
    train: list[CachedCase],
    selection: list[CachedCase],
    undisturbed: list[tuple[float, ...]],
    tmp_path: Path,
) -> None:
    once = armed("training.before_step@1:5=hang")
    # On a busy machine a healthy worker may exceed the timeout as well, which causes further restarts.
    impatient = with_dotted(pair, {"training.collective_timeout_s": 30, "training.max_failures": 100})
    reports = list(fit_distributed(impatient, train, selection, tmp_path / "run"))
    assert len(list(once.iterdir())) == 1, "the failpoint fired"
    assert figures(reports) == undisturbed
    assert any("did not answer" in report.notes for report in reports)
    assert_nothing_left()


def test_training_survives_a_killed_controller(
    pair: Config,
    train: list[CachedCase],
    selection: list[CachedCase],
    undisturbed: list[tuple[float, ...]],
    tmp_path: Path,
) -> None:
    reports = []
    running = fit_distributed(pair, train, selection, tmp_path)
    for report in running:
        reports.append(report)
        if report.epoch == 2:
            (pid,) = _pids("TrainController")
            os.kill(pid, signal.SIGKILL)
    assert figures(reports) == undisturbed
    assert_nothing_left()


def test_full_disk_in_a_worker_ends_the_training(
    armed: Callable[[str], Path],
    local_ray: Cluster,
    pair: Config,
    train: list[CachedCase],
    selection: list[CachedCase],
    tmp_path: Path,
) -> None:
    armed("checkpoint.write:2=enospc,checkpoint.write:1=enospc")
    with pytest.raises(ResourceError, match="disk is full"):
        list(fit_distributed(pair, train, selection, tmp_path / "run"))
    assert_nothing_left()


def test_training_ends_after_too_many_lost_workers(
    armed: Callable[[str], Path],
    local_ray: Cluster,
    pair: Config,
    train: list[CachedCase],
    selection: list[CachedCase],
    tmp_path: Path,
) -> None:
    armed("training.before_step@1:2=kill,training.before_step@1:3=kill")
    with pytest.raises(TrainingError, match="several workers failed") as caught:
        list(fit_distributed(with_dotted(pair, {"training.max_failures": 1}), train, selection, tmp_path / "run"))
    assert "worker 1: its process died" in caught.value.fields["found"]
    assert "1 restarts" in caught.value.fields["where"]
    assert_nothing_left()


def _pids(kind: str) -> Iterator[int]:
    """Process ids of the live actors whose class name contains `kind`."""
    from ray.util.state import list_actors

    actors: Any = list_actors(filters=[("state", "=", "ALIVE")], detail=True)
    return (actor.pid for actor in actors if kind in actor.class_name)
