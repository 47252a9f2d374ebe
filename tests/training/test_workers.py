"""Two workers train as one does: with torch's own process groups, and with Ray Train."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import ray

from gtvray.config import Config, with_dotted
from gtvray.data import CachedCase
from gtvray.errors import TrainingError
from gtvray.runtime import Cluster
from gtvray.training import Workers, fit, fit_distributed

# In one process, so that shared workers are started once. Ray Data raises the warning when Ray Train imports it.
pytestmark = [pytest.mark.filterwarnings(r"ignore:`use_\w+` is deprecated"), pytest.mark.xdist_group("ray")]

Curve = list[list[float]]
# Each loss, and a network whose coarser heads have losses of their own.
VARIANTS: dict[str, dict[str, Any]] = {
    "dice_ce": {"loss.kind": "dice_ce"},
    "dice_focal": {"loss.kind": "dice_focal"},
    "dice_topk": {"loss.kind": "dice_topk"},
    "heads": {"network.deep_supervision": True, "network.features": [4, 4, 4, 8], "training.patch_ijk": [32, 32, 32]},
}


@pytest.fixture(scope="module")
def pair(config: Config) -> Config:
    """Two steps of four patches: two for each of two workers."""
    return with_dotted(
        config, {"training.epochs": 2, "training.steps_per_epoch": 2, "training.batch_size": 4, "network.dropout": 0.0}
    )


def curve(reports: Any) -> Curve:
    return [[report.train_loss, report.selection_dsc] for report in reports]


def assert_alike(one: Curve, other: Curve) -> None:
    """Losses agree up to the order of sums, DSC up to a voxel or two at the threshold."""
    (first_losses, first_dsc), (second_losses, second_dsc) = (zip(*each, strict=True) for each in (one, other))
    assert first_losses == pytest.approx(second_losses, rel=1e-4)
    assert first_dsc == pytest.approx(second_dsc, abs=2e-3)


@pytest.fixture(scope="module")
def ranks(
    pair: Config, train: list[CachedCase], selection: list[CachedCase], tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Curve]]:
    """Every variant's curve, from each of two ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    job = {
        "config": with_dotted(pair, {"training.num_workers": 2}).model_dump(mode="json"),
        "train": [[case.case_id, str(case.folder), case.meta] for case in train],
        "selection": [[case.case_id, str(case.folder), case.meta] for case in selection],
        "variants": VARIANTS,
    }
    (folder / "job.json").write_text(json.dumps(job))
    script = str(Path(__file__).with_name("rank.py"))
    started = [subprocess.Popen([sys.executable, script, str(folder), str(rank)]) for rank in range(2)]
    try:
        assert [process.wait(90) for process in started] == [0, 0]
    finally:
        for process in started:
            process.kill()
            process.wait()
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("name", VARIANTS)
def test_two_workers_have_the_loss_curve_of_one(
    name: str,
    ranks: list[dict[str, Curve]],
    pair: Config,
    train: list[CachedCase],
    selection: list[CachedCase],
    tmp_path: Path,
) -> None:
    alone = curve(fit(with_dotted(pair, VARIANTS[name]), train, selection, tmp_path))
    first, second = (rank[name] for rank in ranks)
    assert first == second
    assert_alike(first, alone)


@pytest.mark.slow
@pytest.mark.ray
def test_ray_train_has_the_loss_curve_of_one_worker(
    local_ray: Cluster, pair: Config, train: list[CachedCase], selection: list[CachedCase], tmp_path: Path
) -> None:
    alone = curve(fit(pair, train, selection, tmp_path / "alone"))
    two = with_dotted(pair, {"training.num_workers": 2})
    before, workers = groups_created(), Workers()
    # As for the next trial: the second training has other settings and reuses the workers of the first.
    stopped = with_dotted(two, {"training.seed": 7, "training.epochs": 100})
    unfinished = fit_distributed(stopped, train, selection, tmp_path / "stopped", workers=workers)
    assert next(unfinished).epoch == 1
    unfinished.close()
    reports = list(fit_distributed(two, train, selection, tmp_path / "two", workers=workers))
    workers.end()
    assert groups_created() == before + 1
    assert [report.epoch for report in reports] == [1, 2]
    assert_alike(curve(reports), alone)
    assert Path(reports[-1].checkpoint).parent == tmp_path / "two"
    assert_nothing_left()


@pytest.mark.slow
@pytest.mark.ray
def test_closing_the_generator_stops_the_workers(
    local_ray: Cluster, pair: Config, train: list[CachedCase], selection: list[CachedCase], tmp_path: Path
) -> None:
    long = with_dotted(pair, {"training.num_workers": 2, "training.epochs": 1000})
    reports = fit_distributed(long, train, selection, tmp_path)
    assert next(reports).epoch == 1
    reports.close()
    assert_nothing_left()
    epochs = {entry.name for entry in tmp_path.glob("epoch-*")}
    assert len(epochs) <= 3, "workers stop at the end of the epoch they are in"


@pytest.mark.slow
@pytest.mark.ray
def test_an_error_in_a_worker_is_raised_as_on_one(
    local_ray: Cluster, pair: Config, train: list[CachedCase], selection: list[CachedCase], tmp_path: Path
) -> None:
    optimizer = pair.optimizer.model_copy(update={"lr": 1e30})
    training = pair.training.model_copy(update={"num_workers": 2})
    absurd = pair.model_copy(update={"optimizer": optimizer, "training": training})
    with pytest.raises(TrainingError, match="not finite") as caught:
        list(fit_distributed(absurd, train, selection, tmp_path))
    assert len(str(caught.value).splitlines()) <= 5
    assert_nothing_left()


def groups_created() -> int:
    """Number of placement groups of two workers since the cluster was started."""
    from ray.util.placement_group import placement_group_table

    groups = placement_group_table().values()
    return sum([bundle.get("CPU") for bundle in group["bundles"].values()] == [1.0, 1.0] for group in groups)


def assert_nothing_left() -> None:
    """All CPUs are free, and no placement group is left."""
    from ray.util.placement_group import placement_group_table

    for _ in range(100):
        standing = [group for group in placement_group_table().values() if group["state"] != "REMOVED"]
        if not standing and ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"]:
            return
        time.sleep(0.1)
    raise AssertionError(f"left over: {standing}, {ray.available_resources()}")
