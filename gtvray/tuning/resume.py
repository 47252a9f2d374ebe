"""Going on with a sweep whose process was killed: the same trials, the same searcher, the same runs in MLflow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ray.tune import Tuner

from gtvray.config import Config, SweepConfig, flatten
from gtvray.errors import InputError, TrainingError
from gtvray.io import read_json, write_json
from gtvray.tuning.relocation import relocate_search_state
from gtvray.tuning.space import tune_space
from gtvray.tuning.watch import Watcher

TUNE_FOLDER = "tune"
_REQUEST = "sweep.json"


def remember_sweep(folder: Path, sweep: SweepConfig, config: Config, fingerprint: str) -> None:
    """Keep in a sweep's folder what it is of, so that it can go on; or hold what is there against it.

    Args:
        folder: the sweep's.
        sweep: search space, searcher, budget.
        config: everything else.
        fingerprint: digest of the data's.

    Raises:
        InputError: another sweep was begun in this folder.
    """
    asked = {"data": fingerprint, "sweep": sweep.model_dump(mode="json"), "config": flatten(config)}
    asked = json.loads(json.dumps(asked))
    if not (folder / _REQUEST).exists():
        write_json(folder / _REQUEST, asked)
        return
    begun = read_json(folder / _REQUEST)
    for part, value in asked.items():
        different = _first_difference(begun.get(part), value, part)
        if different is not None:
            key, before, now = different
            raise InputError(
                "this is another sweep than the one to be resumed",
                where=f"{folder.name}, {key}",
                expected=before,
                found=now,
                do="resume it with the search space, settings and data it was begun with, or begin a new one",
            )


def restored_tuner(folder: Path, trainable: Any, sweep: SweepConfig, watcher: Watcher) -> Tuner | None:
    """Ray Tune where it was left, or None if it had not got anywhere.

    Trials that were under way or failed go on from their checkpoints. ASHA's rungs are not among what Tune keeps: they
    fill anew. The folder may have been moved since.

    Raises:
        TrainingError: Tune's own record is damaged, which Tune itself would silently begin anew, or it cannot follow a
            folder that was moved.
    """
    states = sorted(folder.glob("experiment_state-*.json"))
    if not states or not Tuner.can_restore(str(folder)):
        return None
    try:
        read_json(states[-1])
    except InputError as error:
        raise TrainingError(
            "Ray Tune's record of this sweep is damaged",
            where=states[-1],
            found=error.fields.get("found", error.what),
            do=f"begin a new sweep; the trials' checkpoints are under {folder.parent / 'trials'}",
        ) from error
    relocate_search_state(folder)
    tuner = Tuner.restore(
        str(folder),
        trainable=trainable,
        resume_unfinished=True,
        resume_errored=True,
        param_space=tune_space(sweep.space),
    )
    # Tune pickles callbacks, and ours holds a connection; there is no public way to give it another.
    tuner._local_tuner.get_run_config().callbacks = [watcher]
    return tuner


def _first_difference(before: Any, now: Any, key: str) -> tuple[str, Any, Any] | None:
    if isinstance(before, dict) and isinstance(now, dict):
        pairs = ((before.get(name), now.get(name), f"{key}.{name}") for name in sorted({*before, *now}))
        return next((found for pair in pairs if (found := _first_difference(*pair)) is not None), None)
    return None if before == now else (key, before, now)
