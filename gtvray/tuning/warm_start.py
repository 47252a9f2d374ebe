"""Trials of earlier sweeps on the same data, from which a searcher learns before its first trial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gtvray.config import flatten
from gtvray.errors import InputError, NotFoundError
from gtvray.io import read_json
from gtvray.tracking import Trial, read_trials
from gtvray.tracking.trials import COMPLETED
from gtvray.tuning.space import Space

# Only settings in these sections affect the score of a training.
_SECTIONS = ("split.", "preprocessing.", "augmentation.", "network.", "loss.", "optimizer.", "training.")
# Exceptions: settings that affect how a training runs, but not its result.
_INCIDENTAL = (
    "training.num_workers",
    "training.cpus_per_worker",
    "training.max_failures",
    "training.collective_timeout_s",
)


def earlier_trials(sweeps: Path, names: Sequence[str], space: Space, fingerprint: str, folds: int = 1) -> list[Trial]:
    """Return the completed trials of earlier sweeps that could be trials of this one.

    A trial is one if all its settings outside the space are those of this sweep.

    Args:
        sweeps: folder of the sweeps.
        names: names of the earlier ones.
        space: search space of this sweep.
        fingerprint: digest of its data.
        folds: its number of folds; trials of a sweep with another number trained on other cases.

    Raises:
        NotFoundError: there is no such sweep.
        InputError: a sweep used other data, or none of its trials could be one of this sweep.
    """
    found: list[Trial] = []
    for name in names:
        folder = sweeps / name
        if Path(name).name != name or not (folder / "sweep.json").exists():
            raise NotFoundError("no such sweep", where=sweeps, found=name, do="correct the name in warm_start")
        request = read_json(folder / "sweep.json")
        if request["data"] != fingerprint:
            raise InputError(
                "an earlier sweep used other data",
                where=f"warm_start, {name}",
                expected=fingerprint,
                found=request["data"],
                do="remove it from warm_start: its results do not apply to these data",
            )
        base = {**request["config"], **request["sweep"]["base"]}
        completed = [trial for trial in read_trials(folder) if trial.state == COMPLETED]
        comparable = request["sweep"].get("folds", 1) == folds
        usable = [_moved(trial, name, base, space) if comparable else None for trial in completed]
        kept = [trial for trial in usable if trial is not None]
        if not kept:
            raise InputError(
                "no trial of an earlier sweep could be one of this sweep",
                where=f"warm_start, {name}",
                expected="completed trials with the same folds and settings outside the space, and values within it",
                found=f"{len(usable)} completed trials",
                do="remove it from warm_start, or use the same base and a space that contains its values",
            )
        found += kept
    return found


def _moved(trial: Trial, name: str, base: Mapping[str, Any], space: Space) -> Trial | None:
    """Return a trial with its point in this space; None if the point or a fixed setting does not match."""
    settings = {**base, **trial.settings}
    same = {
        key: value
        for key, value in flatten(space.config).items()
        if key.startswith(_SECTIONS) and key not in space.entries and key not in _INCIDENTAL
    }
    if any(settings.get(key, value) != value for key, value in same.items()):
        return None
    point = space.build(lambda key, _: settings.get(key))
    return replace(trial, trial_id=f"{name}/{trial.trial_id}", settings=point) if space.holds(point) else None
