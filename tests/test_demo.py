"""The demo from end to end, and the commands that use its workspace afterwards."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from gtvray.io import read_volume
from gtvray.runtime import Cluster

from .cli.command import ONE_TRIAL_SWEEP, OPEN_GATE, TINY_SWEEP, Running, partial_files, run
from .ports import free_port
from .stores import open_store

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

# Longer than any test of `make test` may take; `make demo` is the same.
pytestmark = [pytest.mark.ray, pytest.mark.slow]
TRIALS, EPOCHS = 2, 2


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, phantoms: Path) -> list[object]:
    """Arguments of a demo that takes seconds, in a workspace shared by the tests of this module."""
    folder = tmp_path_factory.mktemp("demo")
    (folder / "tiny.yaml").write_text(TINY_SWEEP)
    return ["demo", "--data", phantoms, "--sweep", folder / "tiny.yaml", "--workspace", folder / "workspace"]


@pytest.fixture(scope="module")
def workspace(base: list[object]) -> Path:
    return Path(str(base[-1]))


@pytest.fixture(scope="module")
def one_trial(workspace: Path) -> list[object]:
    """Options for an even shorter demo, with one trial of one epoch."""
    path = workspace.parent / "one.yaml"
    path.write_text(ONE_TRIAL_SWEEP)
    return ["--sweep", path]


@pytest.fixture(scope="module")
def first(base: list[object]) -> dict[str, Any]:
    """The JSON output of the first demo, which starts its own cluster."""
    finished = run(*base, *OPEN_GATE, "--port", free_port(), "--json")
    assert (finished.code, finished.stderr) == (0, "")
    return dict(finished.json())


@dataclass(frozen=True)
class Endpoint:
    """A served champion."""

    url: str
    token: str
    process: Running


@pytest.fixture(scope="module")
def second(
    base: list[object], one_trial: list[object], first: dict[str, Any], local_ray: Cluster
) -> Iterator[Endpoint]:
    """The endpoint of a second demo in the same workspace, kept running by `--keep-serving`."""
    port = free_port()
    keep = ("--keep-serving", "--address", local_ray.address)
    running = Running(*base, *one_trial, *OPEN_GATE, "--port", port, *keep)
    try:
        said = running.wait_for("bearer token: ", within_s=500)
        yield Endpoint(f"http://127.0.0.1:{port}", said.rpartition("bearer token: ")[2].split()[0], running)
        running.interrupt()
        running.end()
    finally:
        # Otherwise its endpoint would keep running, and later tests could not start theirs.
        running.kill_all()


@pytest.fixture(scope="module")
def mlflow(first: dict[str, Any], workspace: Path) -> MlflowClient:
    return open_store(Path(first["tracking"]["uri"].removeprefix("sqlite:///")), workspace / "mlartifacts")


@pytest.fixture(scope="module")
def scan(phantoms: Path) -> Path:
    return phantoms / "2" / "data.nii.gz"


def test_every_held_out_case_is_scored_and_served_as_offline(first: dict[str, Any]) -> None:
    assert first["ok"] is True
    assert len(first["cases"]) == first["data"]["split"]["held_out"] == 3
    for row in first["cases"]:
        assert row["same_as_offline"] is True
        assert 0 <= row["dsc"] <= 1
        assert row["hd95_mm"] >= 0
        assert row["milliseconds"] > 0
    assert "not a medical device" in first["notice"]
    assert {"data", "sweep", "evaluate", "promote", "serve", "request"} <= first["seconds"].keys()


def test_pictures_and_reports_are_there(first: dict[str, Any], workspace: Path) -> None:
    assert len(first["pictures"]) == 3
    for picture in map(Path, first["pictures"]):
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert (picture.parent / "scores.md").exists()
        stored = json.loads((picture.parent / "result.json").read_text())
        assert stored["cases"] == first["cases"]
    overlay = Path(first["overlay"])
    assert overlay == workspace / "reports" / "overlay.png"
    assert overlay.read_bytes().startswith(b"\x89PNG")
    assert partial_files(workspace) == []


def test_the_sweep_is_in_mlflow(first: dict[str, Any], mlflow: MlflowClient) -> None:
    parent = mlflow.get_run(first["tracking"]["sweep_run"])
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["gtvray.data"] == first["data"]["fingerprint"]["digest"]
    where = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    children = mlflow.search_runs([parent.info.experiment_id], where)
    trials = {trial["trial_id"]: trial for trial in first["sweep"]["trials"]}
    assert len(children) == len(trials) == TRIALS
    for child in children:
        trial = trials[child.data.tags["ray.trial_id"]]
        assert child.info.status == "FINISHED"
        assert float(child.data.params["optimizer.lr"]) == trial["point"]["optimizer.lr"]
        history = mlflow.get_metric_history(child.info.run_id, "selection_dsc")
        assert [entry.step for entry in history] == list(range(1, EPOCHS + 1))
        assert max(entry.value for entry in history) == pytest.approx(trial["best_dsc"])


def test_the_champion_is_the_bundle_of_the_best_trial(first: dict[str, Any], mlflow: MlflowClient) -> None:
    champion = mlflow.get_model_version_by_alias("gtvray-gtv", "champion")
    assert str(champion.version) == first["promotion"]["version"] == "1"
    assert champion.tags["gtvray.digest"] == first["sweep"]["digest"]
    assert champion.run_id == first["tracking"]["best_run"]
    best = max(first["sweep"]["trials"], key=lambda trial: trial["best_dsc"])
    assert mlflow.get_run(champion.run_id).data.tags["ray.trial_id"] == best["trial_id"]


def test_a_model_no_better_than_the_baseline_is_refused_with_its_evidence(
    base: list[object], one_trial: list[object], local_ray: Cluster, tmp_path: Path
) -> None:
    words = [*base[:-1], tmp_path, *one_trial]
    refused = run(*words, "--port", free_port(), "--address", local_ray.address)
    assert "lower bound" in refused.error(code=1)
    for name in ("model", "baseline"):
        assert f"{name}: mean DSC" in refused.stderr
    assert run("models", "--workspace", tmp_path, "--json").json() == []
    (record,) = (tmp_path / "decisions").glob("*-refused/decision.json")
    evidence = json.loads(record.read_text())["evidence"]
    assert len(evidence["candidate"]) == len(evidence["baseline"]) == 3


def test_the_champion_stays_when_the_model_of_a_second_demo_is_not_better(second: Endpoint, workspace: Path) -> None:
    (version,) = run("models", "--workspace", workspace, "--json").json()
    assert (version["version"], version["aliases"]) == ("1", ["champion"])
    (record,) = (workspace / "decisions").glob("*-refused/decision.json")
    assert json.loads(record.read_text())["evidence"]["champion_digest"] == version["digest"]


def test_the_endpoint_and_the_command_line_give_the_same_mask(
    second: Endpoint, workspace: Path, scan: Path, tmp_path: Path
) -> None:
    here, there = tmp_path / "here.nii.gz", tmp_path / "there.nii.gz"
    offline = run("predict", scan, "-o", here, "--workspace", workspace, "--json")
    served = run("predict", scan, "-o", there, "--server", second.url, "--json", GTVRAY_TOKEN=second.token)
    assert _same_mask(here, there, scan)
    (mine,), (theirs,) = offline.json()["masks"], served.json()["masks"]
    assert mine["volume_ml"] == theirs["volume_ml"] > 0
    assert mine["mask"] == str(here)


def test_a_wrong_token_is_refused(second: Endpoint, scan: Path, tmp_path: Path) -> None:
    mask = tmp_path / "mask.nii.gz"
    refused = run("predict", scan, "-o", mask, "--server", second.url, GTVRAY_TOKEN="wrong")
    assert "token" in refused.error(code=2)
    assert not mask.exists()


def test_evaluate_ranks_models_and_the_baseline(
    second: Endpoint, workspace: Path, phantoms: Path, tmp_path: Path
) -> None:
    output = run(
        *["evaluate", "--data", phantoms, "--model", "champion", "--model", _bundle(workspace), "--baseline", phantoms],
        *["--workspace", workspace, "--out", tmp_path / "out", "--json"],
    )
    assert output.code == 0, output
    found = output.json()
    name = _bundle(workspace).name
    champion, other = found["models"]
    assert champion["digest"] == _champion(workspace)["digest"] != other["digest"]
    for model in (champion, other):
        masks = tmp_path / "out" / "masks" / model["digest"][:12]
        assert len(model["cases"]) == len(list(masks.iterdir())) == model["summary"]["cases"] == 12
    assert {ranked["name"] for ranked in found["ranking"]} == {"champion", name, "mean position"}
    assert [(pair["model"], pair["other"]) for pair in found["differences"] if pair["metric"] == "dsc"] == [
        ("champion", name),
        ("champion", "mean position"),
        (name, "mean position"),
    ]
    assert len(found["pictures"]) == 6
    report = Path(found["report"])
    assert all((report / picture).read_bytes().startswith(b"\x89PNG") for picture in found["pictures"])
    assert "rank by DSC" in (report / "scores.md").read_text()
    assert set(found["mlflow"]) == {"champion", name}


def test_keep_serving_ends_cleanly_and_rollback_restores_the_previous_model(
    second: Endpoint, workspace: Path, phantoms: Path
) -> None:
    second.process.interrupt()
    ended = second.process.end()
    assert ended.code == 0, ended
    assert "the gate refused the new model" in ended.stdout
    assert "champion: version 1" in ended.stdout
    assert second.process.strays() == []

    words = ["promote", _bundle(workspace), "--data", phantoms, "--workspace", workspace]
    plan = run(*words, "--dry-run", "--json").json()
    assert (plan["champion"], plan["cases"], plan["looks"]) == ("1", 3, 2)
    forced = run(*words, "--override-gate", "a test of rollback", "--by", "Ada", "--json").json()
    assert (forced["version"], forced["overridden"]) == ("2", True)
    assert _champion(workspace)["by"] == "Ada"
    assert run("rollback", "--workspace", workspace, "--json").json()["version"] == "1"
    assert _champion(workspace)["version"] == "1"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_equals_offline_until_it_is_stopped(
    number: signal.Signals, first: dict[str, Any], workspace: Path, scan: Path, local_ray: Cluster, tmp_path: Path
) -> None:
    port, here, there = free_port(), tmp_path / "here.nii.gz", tmp_path / "there.nii.gz"
    serving = Running(
        *["serve", "--model", "1", "--port", port, "--address", local_ray.address, "--workspace", workspace],
        GTVRAY_TOKEN="a-token",
    )
    said = serving.wait_for("until Ctrl-C")
    assert "a-token" not in said
    assert run("predict", scan, "-o", here, "--model", "1", "--workspace", workspace).code == 0
    asked = run("predict", scan, "-o", there, "--server", f"http://127.0.0.1:{port}", GTVRAY_TOKEN="a-token")
    assert asked.code == 0, asked
    assert _same_mask(here, there, scan)
    serving.interrupt(number)
    ended = serving.end()
    assert (ended.code, ended.stdout) == (0, ""), ended
    assert ended.stderr.endswith("stopping\n")
    assert serving.strays() == []


def test_an_unknown_version_is_named(first: dict[str, Any], workspace: Path, scan: Path, tmp_path: Path) -> None:
    refused = run("predict", scan, "-o", tmp_path / "mask.nii", "--model", "77", "--workspace", workspace)
    assert "77" in refused.error(code=2)


def test_promote_refuses_other_data_than_the_bundle_was_trained_on(
    first: dict[str, Any], workspace: Path, phantoms: Path, tmp_path: Path
) -> None:
    other = tmp_path / "data"
    other.mkdir()
    for case in sorted(phantoms.iterdir())[1:]:
        (other / case.name).symlink_to(case)
    words = ["promote", first["sweep"]["bundle"], "inference.threshold=0.31", "--data", other, "--workspace", workspace]
    refused = run(*words, *OPEN_GATE)
    assert "trained on other data" in refused.error(code=2)


def _bundle(workspace: Path) -> Path:
    """The bundle of the second demo."""
    return max((workspace / "bundles").glob("demo-*"), key=lambda folder: folder.stat().st_mtime)


def _champion(workspace: Path) -> dict[str, Any]:
    versions = run("models", "--workspace", workspace, "--json").json()
    return next(row for row in versions if "champion" in row["aliases"])


def _same_mask(one: Path, other: Path, scan: Path) -> bool:
    mask = read_volume(one)
    assert mask.same_grid(read_volume(scan))
    return mask.same_grid(read_volume(other)) and np.array_equal(mask.array, read_volume(other).array)
