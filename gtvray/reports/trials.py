"""The HTML page of a sweep's trials, drawn from the record in the sweep's folder."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gtvray import NOTICE
from gtvray.config import Config, flatten
from gtvray.io import Picture, Table, atomic_path, read_json, render_page
from gtvray.reports.trial_charts import curve_chart, front_chart, objective_chart, parallel_chart
from gtvray.tracking import QUEUE_FILE, Refused, Trial, read_rejections, read_trials, summarise_rejections
from gtvray.tracking.trials import COMPLETED, FAILED, OUT_OF_BUDGET, PLANNED, RUNNING, STOPPED

PAGE = "trials.html"
WORST_CASES = "worst.json"
# The fewest pairs with which a one-sided signed-rank test can reach 5 %: 1 / 2^5.
FEWEST_FOLD_CASES = 5
STATES = (COMPLETED, STOPPED, OUT_OF_BUDGET, FAILED, RUNNING, PLANNED)


def write_trials_page(folder: Path, name: str) -> Path | None:
    """Write `trials.html` into a sweep's folder and return its path; None if no trial has started."""
    trials = read_trials(folder)
    if not trials:
        return None
    page = folder / PAGE
    with atomic_path(page) as temporary:
        refused = summarise_rejections(read_rejections(folder / QUEUE_FILE))
        temporary.write_text(trials_page(name, trials, refused, folder), encoding="utf-8")
    return page


def trials_page(name: str, trials: Sequence[Trial], refused: Sequence[Refused] = (), folder: Path | None = None) -> str:
    """Render the page of a sweep.

    Args:
        name: name of the sweep.
        trials: its trials; those without an epoch appear in the tables only.
        refused: what MLflow refused permanently.
        folder: folder of the sweep, for the files that are written at its end.
    """
    with_epochs = [trial for trial in trials if trial.curve("selection_dsc")]
    # The ranking of a sweep that has ended also knows folds, repeats and damaged checkpoints.
    winner = _read(folder, "result.json").get("best")
    trained = sorted(with_epochs, key=lambda each: (each.trial_id != winner, each.state == FAILED, -best_dsc(each)))
    untrained = [trial for trial in trials if not trial.curve("selection_dsc")]
    keys = searched_keys(trials)
    facts: list[tuple[str, object]] = [
        ("trials", len(trials)),
        *((state, number) for state in STATES if (number := sum(trial.state == state for trial in trials))),
    ]
    if any(trial.exploits for trial in trials):
        facts.append(("exploits (weights from other trials)", sum(len(trial.exploits) for trial in trials)))
    if trained:
        facts += [("best trial", trained[0].trial_id), ("best DSC", f"{best_dsc(trained[0]):.4f}")]
    return render_page(
        "gtvray.reports",
        "trials.html",
        notice=NOTICE,
        name=name,
        facts=facts,
        charts=list(_charts(trained, keys)) if trained else [],
        trials=_trial_table([*trained, *untrained], keys),
        failures=_failure_table(trials),
        refused=Table(("trial", "entries", "reason"), [(each.trial, each.entries, each.reason) for each in refused]),
        confirmation=_read(folder, "confirmation.json"),
        front=_front_table(_read(folder, "front.json")),
        objectives=list(_objective_charts(_read(folder, "front.json"))),
        folds=_folds_text(trials, _read(folder, "sweep.json")),
        worst=list(_worst_pictures(folder)),
        importances=_importance_table(
            _read(folder, "importances.json"), sum(each.state in (STOPPED, OUT_OF_BUDGET) for each in trials)
        ),
        command=_command(trained[0], _read(folder, "sweep.json")) if trained else "",
    )


def _read(folder: Path | None, name: str) -> dict[str, Any]:
    """Read a file that is written when the sweep ends; empty if it does not exist."""
    return dict(read_json(folder / name)) if folder is not None and (folder / name).exists() else {}


def _worst_pictures(folder: Path | None) -> Iterator[Picture]:
    for row in _read(folder, WORST_CASES).get("cases", []):
        path = Path(str(folder)) / row["picture"]
        caption = f"case {row['case']}: DSC {row['dsc']:.3f}; reference green, prediction red"
        yield Picture(path.read_bytes(), "png", caption, caption)


def _importance_table(stored: Mapping[str, Any], stopped: int) -> Table:
    caption = f"PED-ANOVA over {stored.get('trials', 0)} completed trials; interpret with caution if fewer than 30."
    if stopped:
        caption += (
            f" {stopped} trials that ended early are left out, since their DSC is that of an earlier epoch. The "
            "importances are therefore those among the settings that were promising enough to be trained to the end."
        )
    rows = [(key, f"{value:.2f}") for key, value in stored.get("importances", {}).items()]
    return Table(("setting", "importance"), rows, caption)


def _front_table(stored: Mapping[str, Any]) -> Table:
    caption = f"Hypervolume {stored.get('hypervolume', 0):.3f}: share of the box between the worst and the ideal point."
    rows = [(name, *(f"{value:.4g}" for value in values)) for name, values in stored.get("trials", {}).items()]
    return Table(("trial", *stored.get("objectives", {})), rows, caption)


def _objective_charts(stored: Mapping[str, Any]) -> Iterator[Picture]:
    """Yield a chart of the DSC against each other objective; nothing for a sweep with one objective."""
    for at, name in enumerate(stored.get("objectives", {})):
        if at:
            front, others = (
                {trial: (values[at], values[0]) for trial, values in stored.get(part, {}).items()}
                for part in ("trials", "others")
            )
            yield objective_chart(name, front, others)


def _folds_text(trials: Sequence[Trial], request: Mapping[str, Any]) -> str:
    """State what the DSC of a trial means in a sweep with folds; empty for one without."""
    if request.get("sweep", {}).get("folds", 1) == 1:
        return ""
    counts = [len(cases) for trial in trials for cases in trial.cases.values()]
    if not counts:
        return ""
    text = (
        f"Each trial is scored on the cases of its fold, which its network was not trained on: {min(counts)} to "
        f"{max(counts)} cases. DSC of different folds cannot be compared; a point is ranked by its number of folds and "
        "then by the mean over them."
    )
    if min(counts) < FEWEST_FOLD_CASES:
        text += (
            f" With fewer than {FEWEST_FOLD_CASES} cases in a fold, its DSC does not show whether a point is better or "
            "worse than another: undecided."
        )
    return text


def _command(best: Trial, request: Mapping[str, Any]) -> str:
    """Return the command that trains with the settings of a trial, without those equal to the defaults."""
    if not request:
        return ""
    default = flatten(Config())
    settings = {**request["config"], **request["sweep"]["base"], **best.settings}
    words = [
        f"{key}={json.dumps(value) if isinstance(value, list) else value}"
        for key, value in settings.items()
        if value != default.get(key)
    ]
    return shlex.join(["gtvray", "train", *words, "--data", "DATA"])


def best_dsc(trial: Trial) -> float:
    """The highest selection DSC of a trial's epochs."""
    return max(value for _, value in trial.curve("selection_dsc"))


def searched_keys(trials: Sequence[Trial]) -> list[str]:
    """The settings that differ between trials."""
    keys = dict.fromkeys(key for trial in trials for key in trial.settings)
    return [key for key in keys if len({str(trial.settings.get(key)) for trial in trials}) > 1]


def _seconds(trial: Trial) -> float:
    return sum(value for _, value in trial.curve("seconds"))


def _setting(trial: Trial, key: str) -> str:
    value = trial.settings.get(key, "-")
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _trial_table(trials: Sequence[Trial], keys: Sequence[str]) -> Table:
    rows = [
        (
            trial.trial_id,
            f"{best_dsc(trial):.4f}" if trial.curve("selection_dsc") else None,
            len(trial.epochs),
            f"{_seconds(trial):.0f}",
            trial.origin,
            trial.ending,
            *(_setting(trial, key) for key in keys),
        )
        for trial in trials
    ]
    return Table(("trial", "best DSC", "epochs", "seconds", "origin", "ending", *keys), rows)


def _failure_table(trials: Sequence[Trial]) -> Table:
    rows = [(trial.trial_id, "recovered", note) for trial in trials for note in trial.notes]
    rows += [(trial.trial_id, "took over", text) for trial in trials for _, _, text in trial.exploits]
    rows += [(trial.trial_id, FAILED, trial.reason or "") for trial in trials if trial.state == FAILED]
    return Table(("trial", "outcome", "reason"), rows)


def _charts(trials: Sequence[Trial], keys: Sequence[str]) -> Iterator[Picture]:
    best = [best_dsc(trial) for trial in trials]
    yield curve_chart("selection DSC", {trial.trial_id: trial.curve("selection_dsc") for trial in trials}, best)
    yield curve_chart("training loss", {trial.trial_id: trial.curve("train_loss") for trial in trials}, best)
    if keys:
        yield parallel_chart({key: [_setting(trial, key) for trial in trials] for key in keys}, best)
    yield front_chart([_seconds(trial) for trial in trials], best)
