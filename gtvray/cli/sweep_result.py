"""The result of `gtvray sweep`, as text and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from gtvray.cli.common import table
from gtvray.cli.recorded import tracking_found, tracking_lines

if TYPE_CHECKING:
    from gtvray.api import SweepRun
    from gtvray.tracking import Trial


def sweep_result(run: SweepRun) -> dict[str, Any]:
    """Return the result of a sweep as JSON values."""
    outcome, result = run.outcome, run.outcome.result
    found: dict[str, Any] = {
        "ok": not result.failed,
        "trials": trial_rows(run),
        "name": run.name,
        "best": result.best.trial_id,
        "bundle": str(outcome.bundle.folder),
        "digest": outcome.bundle.digest,
        "run": outcome.run_id,
        "sweep_run": outcome.sweep_run_id,
        "failed": result.failed,
        "page": str(outcome.page) if outcome.page else None,
        **tracking_found(outcome.delivered, outcome.refused),
    }
    if outcome.stopped_early is not None:
        found["stopped_early"] = outcome.stopped_early
    if outcome.confirmation is not None:
        found["against_default"] = {"verdict": outcome.confirmation.verdict, "text": outcome.confirmation.text}
    if outcome.default_bundle is not None:
        found["default_bundle"] = str(outcome.default_bundle)
    if outcome.front is not None:
        found["front"] = {"trials": outcome.front.trials, "hypervolume": outcome.front.hypervolume}
    return found


def sweep_text(
    run: SweepRun, keys: Iterable[str], *, resume: str, promote: str, promotion: Mapping[str, Any] | None
) -> str:
    """Format the result of a sweep, and what to do next.

    Args:
        run: the sweep.
        keys: searched keys.
        resume: command that resumes it.
        promote: command that promotes the best trial.
        promotion: result of the promotion, if it was requested.
    """
    outcome, result = run.outcome, run.outcome.result
    columns = {"trial": "trial", "origin": "origin", "epochs": "epochs", "dsc": "best DSC", "ending": "ending"}
    lines = [table(trial_rows(run), {**columns, **{key: key for key in keys}}), ""]
    lines.append(f"learning curves: {outcome.page or 'none recorded'}")
    lines += tracking_lines(outcome.delivered, outcome.refused, resume)
    if outcome.stopped_early is not None:
        lines.append(f"the sweep was stopped early: {outcome.stopped_early}")
    if result.failed:
        lines.append(f"{result.failed} of {len(result.ended)} trials failed: see their endings above")
    if result.unfinished:
        lines.append(f"the time budget stopped {len(result.unfinished)} trials; with --budget they continue")
    if outcome.confirmation is not None:
        lines.append(outcome.confirmation.text)
    if outcome.default_bundle is not None:
        lines.append(f"bundle of the default settings: {outcome.default_bundle}")
    lines += _front(run)
    lines.append(f"bundle: {outcome.bundle.folder} (of {result.best.trial_id})")
    if promotion is None:
        lines.append(f"promote it: {promote}")
    else:
        version = promotion.get("version")
        lines.append("not promoted" if version is None else f"version {version} is champion: {promotion['bundle']}")
    lines.append(f"sweep: {run.name}; resume or extend it: {resume}")
    return "\n".join(lines)


def _front(run: SweepRun) -> list[str]:
    front = run.outcome.front
    if front is None:
        return []
    names = list(front.objectives)
    points = [{"trial": name, **dict(zip(names, value, strict=True))} for name, value in front.trials.items()]
    return [
        f"Pareto front, hypervolume {front.hypervolume:.3f}; each trial has a bundle of its name:",
        table(points, {"trial": "trial", **{name: name for name in names}}),
        "",
    ]


def trial_rows(run: SweepRun) -> list[dict[str, Any]]:
    """Return a row per trial: ranked trials first, then the others."""
    result = run.outcome.result
    trials: dict[str, Trial] = {trial.trial_id: trial for trial in result.ended}
    best = {trial.trial_id: trial.best_dsc for trial in result.trials}
    order = [*best, *(name for name in trials if name not in best)]
    return [
        {
            "trial": name,
            "origin": trials[name].origin,
            "epochs": len(trials[name].epochs),
            "dsc": best.get(name),
            "state": trials[name].state,
            "ending": trials[name].ending,
            "reason": trials[name].reason,
            **trials[name].settings,
        }
        for name in order
    ]
