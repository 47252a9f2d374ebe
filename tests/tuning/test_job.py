"""A sweep from data to its bundle: comparison with the default settings, resumes and extensions."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from gtvray.cli.common import Progress
from gtvray.config import Config, SweepConfig, load_config, with_dotted
from gtvray.datasets import Ledger, write_phantoms
from gtvray.errors import ConfigError, InputError, NotFoundError
from gtvray.io import Workspace, read_json
from gtvray.models import Bundle
from gtvray.runtime import SILENT, Cluster
from gtvray.tracking import QUEUE_FILE, RunRecorder, TrialRecord, read_trials
from gtvray.tracking.trials import COMPLETED, OUT_OF_BUDGET
from gtvray.training.checkpoints import checkpoint_path
from gtvray.tuning import SweepJob
from gtvray.tuning.confirm import Confirmation, Verdict
from gtvray.tuning.resume import StoredResult, read_result, remember_sweep, write_result
from gtvray.tuning.watch import SweepStatus

from ..stores import copied_workspace

SWEEP = SweepConfig.model_validate(
    {
        "trials": 3,
        "max_concurrent": 1,
        "objectives": {"dsc": "max", "peak_mb": "min"},
        # Stops the default settings after their first epoch, if they are not the best there.
        "scheduler": {"kind": "top_k", "grace_epochs": 1, "keep": 1},
        "space": {"optimizer.lr": {"low": 1e-3, "high": 3e-2, "log": True}},
    }
)
SETTINGS = [
    "preprocessing.spacing_mm=[8, 8, 8]",
    "network.features=[4, 8, 8]",
    "training.patch_ijk=[16, 16, 16]",
    "training.epochs=2",
    "training.steps_per_epoch=2",
    "training.precision=fp32",
    "split.selection_share=0.15",
    "split.held_out_share=0.63",
    "inference.overlap=0",
]


@pytest.fixture(scope="module")
def config() -> Config:
    return load_config(overrides=SETTINGS)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen phantoms, of which ten are held out."""
    folder = tmp_path_factory.mktemp("many") / "phantoms"
    write_phantoms(folder, 16, 0)
    return folder


@pytest.fixture
def workspace(client: MlflowClient, tmp_path: Path) -> Path:
    """A workspace with a tracking store."""
    return copied_workspace(client, tmp_path / "runs").root


def job(config: Config, workspace: Path, **changes: Any) -> SweepJob:
    sweep = changes.pop("sweep", SWEEP)
    return SweepJob(sweep, config, Workspace(workspace), "one", SILENT, **changes)


def test_only_a_sweep_that_was_started_can_be_resumed(config: Config, tmp_path: Path) -> None:
    for name in ("none", "../one", "."):
        with pytest.raises(NotFoundError, match="no such sweep"):
            SweepJob(SWEEP, config, Workspace(tmp_path), name, SILENT).require_started()
    (tmp_path / "sweeps" / "one").mkdir(parents=True)
    job(config, tmp_path).require_started()


def test_after_a_resume_the_time_left_is_estimated_from_this_session(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of four trials ended in an earlier session; one of the other two took a minute."""
    record = TrialRecord(tmp_path / "sweeps" / "one")
    record.begin_session()
    for number in range(2):
        record.plan(f"t{number}", {}, "random")
        record.end(f"t{number}", COMPLETED)
    progress = Progress({}, quiet=False)
    resumed = SweepJob(SWEEP.model_copy(update={"trials": 4}), config, Workspace(tmp_path), "one", progress)
    resumed._share_before = resumed._share_of_earlier_sessions()
    monkeypatch.setattr("time.monotonic", lambda: 0.0)
    progress.begin("sweep", "")
    left: list[str] = []
    monkeypatch.setattr(progress, "_write", left.append)
    monkeypatch.setattr("time.monotonic", lambda: 60.0)
    for ended in (2, 3):
        resumed._report(SweepStatus("t2", 1, 2, 0.5, 0.5, 3, ended, 0.0))
    assert [line.rpartition("(")[2] for line in left] == ["time left not known yet)", "about 1:00 left)"]


def test_endings_of_trials_and_a_resume_that_starts_none_are_printed(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = TrialRecord(tmp_path / "sweeps" / "one")
    record.plan("t0", {}, "default")
    record.epoch("t0", 1, {"selection_dsc": 0.5})
    record.end("t0", COMPLETED)
    sweep, progress = SWEEP.model_copy(update={"target": 0.4}), Progress({}, quiet=False)
    resumed = SweepJob(sweep, config, Workspace(tmp_path), "one", progress)
    resumed._say_if_nothing_runs()
    progress.begin("sweep", "")
    for each in ("t0", "t1"):
        resumed._report(SweepStatus(each, 1, 2, 0.5, 0.5, 2, 1, 0.0, event="completed", highest=0.5))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("no trial is started: t0 has reached the target of 0.4; ")
    assert [line for line in lines if line.startswith("trial ")] == [
        f"trial {name}: completed, best DSC 0.500 (1 of 3 trials have ended)" for name in ("t0", "t1")
    ]


def test_a_corner_that_no_training_can_have_is_refused_with_the_data(
    config: Config, phantoms: Path, workspace: Path
) -> None:
    entries = {"training.patch_ijk": {"choice": [[16, 16, 16], [256, 256, 256]]}}
    sweep = SweepConfig.model_validate({"space": entries})
    settings = load_config(overrides=[each for each in SETTINGS if "held_out" not in each])
    with pytest.raises(InputError, match="larger than every case") as caught:
        job(settings, workspace, sweep=sweep).open(phantoms)
    assert caught.value.fields["where"] == "a trial with training.patch_ijk=[256,256,256]"


@pytest.mark.parametrize(
    ("verdict", "offered"),
    [
        ("worse", True),
        pytest.param("better", False, marks=pytest.mark.slow),
        pytest.param("not better", True, marks=pytest.mark.slow),
    ],
)
def test_a_finished_sweep_removes_what_an_interruption_left(
    verdict: Verdict,
    offered: bool,
    config: Config,
    workspace: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The bundle of the default settings may be that of an earlier session, when the best was not better.

    MLflow gets the end of the sweep and its page if they were not sent, once.
    """
    finished = job(config, workspace)
    project: Any = SimpleNamespace(fingerprint=SimpleNamespace(digest="d1"))
    remember_sweep(finished.folder, SWEEP, config, "d1")
    record = TrialRecord(finished.folder)
    for number, origin in enumerate(("default", "start", "start")):
        name = f"t{number}"
        record.plan(name, {"optimizer.lr": 0.001 + number / 1000}, origin)
        record.epoch(name, 1, {"selection_dsc": number / 10})
        record.end(name, COMPLETED)
        checkpoint_path(finished.trials_folder / name, 1).mkdir(parents=True)
    write_result(finished.folder, StoredResult("t2", "one-t2", "run", "parent", {}, complete=True))
    Confirmation(verdict, "a sentence").save(finished.folder)
    (Workspace(workspace).bundles / "one-default").mkdir(parents=True)
    monkeypatch.setattr("gtvray.tuning.result._sound", lambda path: True)
    monkeypatch.setattr(Bundle, "load", lambda folder: folder)
    outcome = finished.finished(project)
    assert outcome is not None
    assert outcome.result.best.trial_id == "t2"
    assert (outcome.default_bundle is not None) is offered
    assert sorted(path.name for path in finished.trials_folder.iterdir()) == ["t0", "t2"]
    assert (outcome.delivered, outcome.refused) == (True, [])
    mlflow, parent = (
        finished.record.client,
        RunRecorder(finished.record.client, config.tracking.experiment, "one", tmp_path / "queue.jsonl").run_id,
    )
    ended = mlflow.get_run(parent)
    assert ended.info.status == "FINISHED"
    assert [file.path for file in mlflow.list_artifacts(parent)] == ["report"]
    queue = (finished.folder / QUEUE_FILE).read_bytes()
    assert finished.finished(project) is not None
    assert (finished.folder / QUEUE_FILE).read_bytes() == queue
    assert mlflow.get_run(parent).info.end_time == ended.info.end_time


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings(r"ignore:`use_\w+` is deprecated")
def test_the_best_is_compared_with_the_default_settings_and_a_finished_sweep_stays(
    local_ray: Cluster, config: Config, many: Path, workspace: Path
) -> None:
    first = job(config, workspace)
    project = first.open(many)
    assert len(project.split.held_out) == 10
    assert first.describe(project).first[0]["origin"] == "default"
    outcome = first.run(project, local_ray)
    trials = {trial.trial_id: trial for trial in read_trials(first.folder)}
    assert trials["t0"].state == "completed", "the default settings are trained to the end"
    assert [len(trial.epochs) for trial in trials.values()].count(2) in (1, 2)
    assert outcome.confirmation is not None
    assert outcome.confirmation.verdict in ("better", "worse", "not better", "default")
    if outcome.confirmation.verdict != "default":
        assert len(outcome.confirmation.best_dsc) == len(outcome.confirmation.default_dsc) == 10
        assert {look["purpose"] for look in Ledger(Workspace(workspace).ledger).looks()} == {"sweep"}
    if outcome.default_bundle is not None:
        assert Bundle.load(outcome.default_bundle).digest != outcome.bundle.digest
    assert outcome.front is not None
    for name in outcome.front.trials:
        assert (Workspace(workspace).bundles / f"one-{name}").is_dir()
    worst = read_json(first.folder / "worst.json")
    assert worst["trial"] == outcome.result.best.trial_id
    assert {row["case"] for row in worst["cases"]} <= set(project.split.selection)
    assert [row["dsc"] for row in worst["cases"]] == sorted(row["dsc"] for row in worst["cases"])
    assert outcome.page is not None
    assert all(f"case {row['case']}: DSC" in outcome.page.read_text() for row in worst["cases"])
    stored = read_result(first.folder)
    assert stored is not None
    assert stored.complete

    # Nothing to do: the same outcome, without a cluster.
    again = job(config, workspace)
    finished = again.finished(again.open(many))
    assert finished is not None
    assert (finished.bundle.digest, finished.run_id) == (outcome.bundle.digest, outcome.run_id)
    assert finished.confirmation == outcome.confirmation
    assert [(each.trial_id, each.best_dsc) for each in finished.result.trials] == [
        (each.trial_id, each.best_dsc) for each in outcome.result.trials
    ]

    # Two more trials, of which the best goes on; the ones before keep their rank.
    further = job(config, workspace, extend=2)
    project = further.open(many)
    assert further.finished(project) is None
    extended = further.run(project, local_ray)
    assert [trial.trial_id for trial in extended.result.ended] == [f"t{number}" for number in range(5)]
    best = {each.trial_id: each.best_dsc for each in extended.result.trials}
    assert all(best[each.trial_id] == each.best_dsc for each in outcome.result.trials)
    assert extended.confirmation is not None
    assert extended.confirmation.verdict != "undecided", "compared again with the default settings"
    if extended.result.best.trial_id == outcome.result.best.trial_id:
        assert extended.bundle.digest == outcome.bundle.digest


def test_a_time_budget_of_a_single_training_is_refused_before_the_data_are_read(config: Config, tmp_path: Path) -> None:
    """Trials that end at different epochs cannot be compared."""
    limited = with_dotted(config, {"training.time_budget_s": 60.0})
    with pytest.raises(ConfigError, match="no time budget of their own") as caught:
        job(limited, tmp_path / "runs").open(tmp_path / "no data")
    assert caught.value.fields["where"] == "training.time_budget_s"
    assert not (tmp_path / "runs").exists()
    base = SWEEP.model_copy(update={"base": {"training.time_budget_s": 60.0}})
    with pytest.raises(ConfigError, match="no time budget of their own"):
        job(config, tmp_path / "runs", sweep=base).open(tmp_path / "no data")


@pytest.mark.parametrize(
    ("budget_s", "trials", "spent"), [(None, 1, False), (1e9, 1, False), (1e-9, 1, True), (1e-9, 3, False)]
)
def test_a_budget_is_spent_only_if_it_kept_trials_from_starting(
    budget_s: float | None, trials: int, spent: bool, config: Config, tmp_path: Path
) -> None:
    """A sweep whose last trial has started is complete: a larger budget would add none."""
    limited = job(config, tmp_path, sweep=SWEEP.model_copy(update={"time_budget_s": budget_s}))
    record = TrialRecord(limited.folder)
    record.begin_session()
    for number in range(trials):
        record.plan(f"t{number}", {}, "random")
    file = limited.folder / "trials.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    # The session lasted a minute.
    lines[0]["at"], lines[-1]["at"] = "2030-01-01T00:00:00+00:00", "2030-01-01T00:01:00+00:00"
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert limited._spent is spent


def test_trials_that_a_budget_stopped_are_not_counted_as_done(config: Config, tmp_path: Path) -> None:
    """A resume with a larger budget continues them, so their part of the work is still ahead."""
    record = TrialRecord(tmp_path / "sweeps" / "one")
    for number, state in enumerate((COMPLETED, OUT_OF_BUDGET)):
        record.plan(f"t{number}", {}, "random")
        record.end(f"t{number}", state, "a reason")
    four = job(config, tmp_path, sweep=SWEEP.model_copy(update={"trials": 4}))
    assert four._share_of_earlier_sessions() == 0.25
    # Half of the time is a larger share than a quarter of the trials, and no share exceeds the whole.
    limited = job(config, tmp_path, sweep=SWEEP.model_copy(update={"trials": 4, "time_budget_s": 100.0}))
    assert [limited._share(1, elapsed_s) for elapsed_s in (10, 50, 500)] == [0.25, 0.5, 1.0]
