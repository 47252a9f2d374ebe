"""`gtvray sweep`: what it prints before it runs, at its end, and when trials fail."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow.exceptions import MlflowException

from gtvray.api import SweepRun
from gtvray.cli.common import Progress
from gtvray.cli.demo import demo_sweep
from gtvray.cli.sweep import _promote, seconds_of
from gtvray.cli.sweep_result import sweep_result, sweep_text
from gtvray.config import Config, load_config, with_dotted
from gtvray.errors import InputError
from gtvray.runtime import Cluster
from gtvray.tracking import Trial
from gtvray.tuning import SweepOutcome, SweepResult, TrialResult
from gtvray.tuning.confirm import Confirmation
from gtvray.tuning.pareto import Front

from ..stores import open_store
from .command import ONE_TRIAL_SWEEP, OPEN_GATE, TINY_SWEEP, call, run


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("45m", 2700), ("2h", 7200), ("1.5h", 5400), ("1d", 86400)])
def test_durations(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["2", "h", "-1h", "2 weeks", "", "infh", "nans"])
def test_invalid_duration_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="not a duration"):
        seconds_of(text)


def test_describe_needs_no_data_and_touches_nothing(tiny_sweep: Path, tmp_path: Path) -> None:
    done = call("sweep", tiny_sweep, "--describe", "--workspace", tmp_path / "runs", "optimizer.lr=0.003")
    assert done.code == 0, done
    assert "trials: 2 of at most 2 epochs" in done.stdout
    assert re.search(r"optimizer.lr +0.001 to 0.006 \(log\) +0.003", done.stdout)
    assert not (tmp_path / "runs").exists()
    found = call("sweep", tiny_sweep, "--describe", "--json").json()
    assert [row["key"] for row in found["space"]] == ["optimizer.lr"]
    assert [point["origin"] for point in found["first"]] == ["default", "random"]


def test_settings_of_the_command_line_replace_those_of_base(tiny_sweep: Path, tmp_path: Path) -> None:
    done = call("sweep", tiny_sweep, "--describe", "training.epochs=5", "-s", "training.num_workers=2")
    facts = dict(line.split(": ", 1) for line in done.stdout.partition("\n\n")[0].splitlines())
    assert facts["trials"].startswith("2 of at most 5 epochs")
    assert facts["per trial"].startswith("2 workers")
    config = tmp_path / "settings.yaml"
    config.write_text("training: {epochs: 7}\n")
    assert "at most 2 epochs" in call("sweep", tiny_sweep, "--describe", "--config", config).stdout


def test_dry_run_checks_the_data_and_every_corner(phantoms: Path, tmp_path: Path) -> None:
    space = tmp_path / "space.yaml"
    space.write_text(TINY_SWEEP + "  training.batch_size: {low: 1, high: 2, integer: true}\n")
    command = ["sweep", space, "--data", phantoms, "--workspace", tmp_path / "runs", "--dry-run"]
    done = call(*command)
    assert done.code == 0, done
    assert "first trials:" in done.stdout
    assert not list((tmp_path / "runs").glob("sweeps/*"))
    refused = call(*command, "training.num_workers=2").error(code=2)
    assert "a trial with" in refused
    assert "training.batch_size=1" in refused


def test_a_sweep_needs_data_and_only_an_earlier_one_can_be_extended(tiny_sweep: Path, tmp_path: Path) -> None:
    assert "--data" in call("sweep", tiny_sweep).error(code=2)
    base = ["sweep", tiny_sweep, "--data", tmp_path, "--workspace", tmp_path / "runs"]
    assert "--resume" in call(*base, "--extend", "2").error(code=2)


@pytest.mark.parametrize("options", [("--resume", "one", "--extend", "2"), ("--promote",)])
@pytest.mark.parametrize("mode", ["--dry-run", "--describe"])
def test_options_of_a_run_are_refused_where_nothing_runs(tiny_sweep: Path, mode: str, options: tuple[str, ...]) -> None:
    error = call("sweep", tiny_sweep, "--data", tiny_sweep.parent, mode, *options).error(code=2)
    assert f"found: {', '.join(each for each in options if each.startswith('--'))}" in error


def outcome(tmp_path: Path, **changes: Any) -> Any:
    """A finished sweep of three trials, of which one failed."""
    trials = (
        Trial("t0", {"optimizer.lr": 0.0012345}, {1: {"selection_dsc": 0.5}}, state="completed", origin="default"),
        Trial("t1", {"optimizer.lr": 0.2}, {1: {"selection_dsc": 0.6}}, state="stopped", rung=1, origin="informed"),
        Trial("t2", {"optimizer.lr": 5e-6}, state="failed", reason="no memory", origin="start"),
    )
    ranked = [
        TrialResult(each.trial_id, each.settings, each.origin, each.ending, 1, dsc, 1, tmp_path / each.trial_id)
        for each, dsc in ((trials[1], 0.6), (trials[0], 0.5))
    ]
    bundle = SimpleNamespace(folder=tmp_path / "bundle", digest="d1")
    values: dict[str, Any] = {"delivered": True, "refused": [], "page": tmp_path / "trials.html", **changes}
    found = SweepOutcome(SweepResult(Config(), tuple(ranked), trials), bundle, "r1", "r0", **values)  # type: ignore[arg-type]
    return SweepRun("demo-1", found)


def text_of(run: Any, **changes: Any) -> str:
    words: dict[str, Any] = {"resume": "gtvray sweep --resume demo-1", "promote": "gtvray promote B", "promotion": None}
    return sweep_text(run, ["optimizer.lr"], **{**words, **changes})


def test_result_has_every_trial_with_origin_ending_and_its_learning_rate(tmp_path: Path) -> None:
    run = outcome(tmp_path)
    rows = [line.split() for line in text_of(run).splitlines()[2:5]]
    assert [row[:4] for row in rows] == [
        ["t1", "informed", "1", "0.600"],
        ["t0", "default", "1", "0.500"],
        ["t2", "start", "0", "-"],
    ]
    assert [row[-1] for row in rows] == ["0.200", "0.00123", "5e-06"]
    assert "stopped at rung 1 (epoch 1)" in text_of(run)
    assert "failed: no memory" in text_of(run)
    assert "1 of 3 trials failed" in text_of(run)
    assert text_of(run).splitlines()[-1].endswith("gtvray sweep --resume demo-1")
    found = sweep_result(run)
    assert (found["ok"], found["failed"], found["best"]) == (False, 1, "t1")
    assert [(row["trial"], row["state"], row["reason"]) for row in found["trials"]] == [
        ("t1", "stopped", None),
        ("t0", "completed", None),
        ("t2", "failed", "no memory"),
    ]


def test_result_shows_verdict_default_bundle_front_and_promotion(tmp_path: Path) -> None:
    verdict = Confirmation("worse", "t1 is worse than the default settings")
    front = Front({"dsc": "max", "latency_ms": "min"}, {"t1": [0.6, 12.5], "t0": [0.5, 4.0]}, 0.4)
    reason = "t1 has reached the target of 0.6"
    run = outcome(
        tmp_path, stopped_early=reason, confirmation=verdict, default_bundle=tmp_path / "default", front=front
    )
    text = text_of(run)
    assert "t1 is worse than the default settings" in text
    assert f"bundle of the default settings: {tmp_path / 'default'}" in text
    assert "hypervolume 0.400" in text
    assert f"the sweep was stopped early: {reason}" in text
    assert sweep_result(run)["stopped_early"] == reason
    assert "promote it: gtvray promote B" in text
    assert sweep_result(run)["front"]["trials"] == front.trials
    assert "version 3 is champion: B" in text_of(run, promotion={"bundle": "B", "version": 3})
    assert "not promoted" in text_of(run, promotion={"bundle": "B", "error": {}})


def test_fault_of_mlflow_in_the_promotion_keeps_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def promote(*_: object, **__: object) -> None:
        raise MlflowException("API request to /api/2.0/mlflow/runs/create failed")

    monkeypatch.setattr("gtvray.api.promote", promote)
    run = outcome(tmp_path)
    promotion = _promote(run, tmp_path, tmp_path / "runs", Config(), Progress({}, True))
    assert "API request" in promotion["error"]["found"]
    assert "error: MLflow does not answer" in capsys.readouterr().err
    assert "not promoted" in text_of(run, promotion=promotion)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_best_trial_is_promoted_at_the_end(phantoms: Path, local_ray: Cluster, tmp_path: Path) -> None:
    space, workspace = tmp_path / "space.yaml", tmp_path / "runs"
    space.write_text(ONE_TRIAL_SWEEP)
    command = ["sweep", space, "--data", phantoms, "--workspace", workspace, "--address", local_ray.address]
    finished = run(*command, "--promote", *OPEN_GATE, "--json", within_s=700)
    assert finished.code == 0, finished
    found = finished.json()
    assert found["promotion"] == {"bundle": found["bundle"], "version": "1", "digest": found["digest"]}
    champion = call("models", "show", "champion", "--workspace", workspace, "--json").json()
    assert (champion["version"], champion["digest"]) == ("1", found["digest"])


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_failing_trials_are_reported_everywhere_and_the_sweep_resumes(phantoms: Path, tmp_path: Path) -> None:
    """Every process fails at its third step: with two steps per epoch, two attempts complete two epochs of a trial."""
    space, workspace = tmp_path / "space.yaml", tmp_path / "runs"
    space.write_text(TINY_SWEEP.replace("epochs: 2", "epochs: 3") + "max_concurrent: 1\n")
    command = ["sweep", space, "--data", phantoms, "--workspace", workspace]
    failed = run(*command, within_s=400, GTVRAY_FAILPOINT="training.before_step:3=raise")
    assert failed.code == 1, failed
    assert "2 of 2 trials failed" in failed.stdout
    assert "failed: RuntimeError: failpoint training.before_step:3=raise" in failed.stdout
    assert re.search(r"trial \d/2 \(.*\), t\d epoch \d/3", failed.stderr), "progress without a terminal"
    (folder,) = (workspace / "sweeps").iterdir()
    assert f"sweep {folder.name}\nresume it: gtvray sweep" in failed.stderr
    page = (folder / "trials.html").read_text()
    assert page.count("failpoint training.before_step") >= 2
    client = open_store(workspace / "mlflow.db", workspace / "mlartifacts")
    experiment = client.get_experiment_by_name("gtvray")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "tags.`mlflow.parentRunId` != ''")
    assert {child.info.status for child in runs} == {"FAILED"}

    # The printed command with one more trial; the failed ones are retried.
    resume = re.findall(r"resume it: (.*)", failed.stderr)[-1]
    again = run(*shlex.split(resume)[1:], "--extend", "1", "--json", within_s=400)
    assert again.code == 0, again
    found = again.json()
    assert [trial["ending"] for trial in found["trials"]] == ["completed"] * 3
    assert found["against_default"]["verdict"] in ("undecided", "default")
    (parent,) = client.search_runs([experiment.experiment_id], f"tags.`gtvray.best_trial` = '{found['best']}'")
    assert parent.data.metrics["best_dsc"] == pytest.approx(found["trials"][0]["dsc"])
    assert parent.data.tags["gtvray.best_run"] == found["run"]
    kept = [path.name for path in (folder / "trials").iterdir() if list(path.glob("epoch-*"))]
    assert kept == [found["best"]], "the checkpoints of the others are removed"


@pytest.mark.parametrize("data", [None, Path("scans")])
def test_settings_of_the_command_replace_those_of_the_file_of_a_demo(data: Path | None, tmp_path: Path) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(TINY_SWEEP)
    given = ["training.epochs=1", "optimizer.lr=0.002"]
    for name in (file, None):
        sweep, plain = demo_sweep(name, data, given), demo_sweep(name, data, [])
        assert plain.base["training.epochs"] > 1
        assert plain.base.keys() - sweep.base.keys() == {"training.epochs"}
        settings = with_dotted(load_config(overrides=given), sweep.base, "base")
        assert (settings.training.epochs, settings.optimizer.lr) == (1, 0.002)
