"""Resume an interrupted sweep with its trials, its searcher and its MLflow runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ray.tune import Tuner

from gtvray.config import Config, SweepConfig, flatten, shaping
from gtvray.errors import InputError, TrainingError
from gtvray.io import read_json, write_json
from gtvray.tuning.relocation import relocate_search_state
from gtvray.tuning.space import tune_space
from gtvray.tuning.watch import Watcher

TUNE_FOLDER = "tune"
_REQUEST = "sweep.json"


def remember_sweep(folder: Path, sweep: SweepConfig, config: Config, fingerprint: str) -> None:
    """Store the arguments of a sweep in its folder, or compare them with the stored ones.

    Args:
        folder: folder of the sweep.
        sweep: search space, searcher and budget.
        config: all other settings.
        fingerprint: digest of the data.

    Raises:
        InputError: the folder contains another sweep.
    """
    request = {"data": fingerprint, "sweep": sweep.model_dump(mode="json"), "config": flatten(config)}
    request = json.loads(json.dumps(request))
    if not (folder / _REQUEST).exists():
        write_json(folder / _REQUEST, request)
        return
    stored = _shaping(read_json(folder / _REQUEST))
    for part, value in _shaping(request).items():
        different = _first_difference(stored.get(part), value, part)
        if different is not None:
            key, before, now = different
            raise InputError(
                "the sweep to resume has other settings or data",
                where=f"{folder.name}, {key}",
                expected=before,
                found=now,
                do="resume it with its own search space, settings and data, or start a new sweep",
            )


def _shaping(request: dict[str, Any]) -> dict[str, Any]:
    """The part of a request that shapes the result: not where it is recorded, nor the size of the cluster."""
    sweep = {name: value for name, value in request["sweep"].items() if name != "max_concurrent"}
    sweep["base"] = shaping(sweep["base"])
    return {"data": request["data"], "sweep": sweep, "config": shaping(request["config"])}


def restored_tuner(folder: Path, trainable: Any, sweep: SweepConfig, watcher: Watcher) -> Tuner | None:
    """Return the tuner of an interrupted sweep, or None if no trial had started.

    Unfinished and failed trials resume from their checkpoints. Tune does not store ASHA's rungs: they fill again. The
    folder may have been moved.

    Raises:
        TrainingError: Tune's state is damaged, where Tune itself would silently start again, or it still refers to the
            former location of a moved folder.
    """
    states = sorted(folder.glob("experiment_state-*.json"))
    if not states or not Tuner.can_restore(str(folder)):
        return None
    try:
        read_json(states[-1])
    except InputError as error:
        raise TrainingError(
            "Ray Tune's state of this sweep is damaged",
            where=states[-1],
            found=error.fields.get("found", error.what),
            do=f"start a new sweep; the checkpoints of the trials are in {folder.parent / 'trials'}",
        ) from error
    relocate_search_state(folder)
    tuner = Tuner.restore(
        str(folder),
        trainable=trainable,
        resume_unfinished=True,
        resume_errored=True,
        param_space=tune_space(sweep.space),
    )
    # Tune pickles callbacks, and ours holds a connection; Tune has no public API to replace it.
    tuner._local_tuner.get_run_config().callbacks = [watcher]
    return tuner


def _first_difference(before: Any, now: Any, key: str) -> tuple[str, Any, Any] | None:
    if isinstance(before, dict) and isinstance(now, dict):
        pairs = ((before.get(name), now.get(name), f"{key}.{name}") for name in sorted({*before, *now}))
        return next((found for pair in pairs if (found := _first_difference(*pair)) is not None), None)
    return None if before == now else (key, before, now)
