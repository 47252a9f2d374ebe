"""Files from which a sweep is resumed: the request it was started with and, once it has ended, its result."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from gtvray.config import Config, SweepConfig, build, first_difference, flatten, nested, shaping
from gtvray.errors import InputError
from gtvray.io import read_json, write_json
from gtvray.tracking.trials import FAILED, OUT_OF_BUDGET, Trial

_REQUEST, _RESULT = "sweep.json", "result.json"
# A trial that has failed this many times, over all sessions of the sweep, is not retried.
_MOST_FAILURES = 3


@dataclass(frozen=True)
class StoredResult:
    """The result of a sweep that has ended.

    Attributes:
        best: id of the best trial.
        bundle: name of its bundle's folder.
        run_id: MLflow run of the trial.
        sweep_run_id: MLflow run of the sweep.
        ranking: trial -> best DSC and its epoch, of every trial that had a checkpoint.
        complete: False if more time or more trials would continue the sweep.
    """

    best: str
    bundle: str
    run_id: str
    sweep_run_id: str
    ranking: dict[str, tuple[float, int]]
    complete: bool

    def finished(self, sweep: SweepConfig, elapsed_s: float) -> bool:
        """Return whether resuming the sweep would change nothing."""
        return self.complete or (sweep.time_budget_s is not None and elapsed_s >= sweep.time_budget_s)


def remember_sweep(folder: Path, sweep: SweepConfig, config: Config, fingerprint: str, extend: int = 0) -> SweepConfig:
    """Store the arguments of a sweep in its folder, or compare them with the stored ones.

    Args:
        folder: folder of the sweep.
        sweep: search space, searcher and budget.
        config: all other settings.
        fingerprint: digest of the data.
        extend: number of further trials.

    Returns:
        the sweep to run. Its number of trials is the stored one, with earlier extensions; its time budget is the given
        one, which may differ from before.

    Raises:
        InputError: the folder contains another sweep.
    """
    request = {"data": fingerprint, "sweep": sweep.model_dump(mode="json"), "config": flatten(config)}
    request = json.loads(json.dumps(request))
    extended = 0
    if (folder / _REQUEST).exists():
        stored = read_json(folder / _REQUEST)
        extended = stored.pop("extended")
        # Settings introduced since then take their defaults.
        stored["sweep"] = SweepConfig.model_validate(stored["sweep"]).model_dump(mode="json")
        stored["config"] = flatten(build(Config, nested(stored["config"], folder), folder))
        stored = json.loads(json.dumps(stored))
        stored["sweep"]["time_budget_s"] = request["sweep"]["time_budget_s"]
        _require_same(folder, stored, request)
    result = read_result(folder)
    if extend and result is not None:
        write_result(folder, replace(result, complete=False))
    write_json(folder / _REQUEST, {**request, "extended": extended + extend})
    return sweep.model_copy(update={"trials": sweep.trials + extended + extend})


def unfinished_trials(trials: Mapping[str, Trial], sweep: SweepConfig, elapsed_s: float) -> list[str]:
    """Return the trials that continue when a sweep is resumed.

    These are trials that were running, that the budget stopped if there is budget left, and that failed, unless they
    failed too often.
    """
    budget_left = sweep.time_budget_s is None or elapsed_s < sweep.time_budget_s
    return [
        name
        for name, trial in trials.items()
        if not trial.ended
        or (trial.state == OUT_OF_BUDGET and budget_left)
        or (trial.state == FAILED and trial.failures < _MOST_FAILURES)
    ]


def write_result(folder: Path, result: StoredResult) -> None:
    """Store the result of a sweep."""
    write_json(folder / _RESULT, asdict(result))


def read_result(folder: Path) -> StoredResult | None:
    """Return the stored result of a sweep; None if it has not ended yet."""
    if not (folder / _RESULT).exists():
        return None
    stored = read_json(folder / _RESULT)
    ranking = {name: (dsc, epoch) for name, (dsc, epoch) in stored.pop("ranking").items()}
    return StoredResult(**stored, ranking=ranking)


def _require_same(folder: Path, stored: dict[str, Any], request: dict[str, Any]) -> None:
    stored = _shaping(stored)
    for part, value in _shaping(request).items():
        different = first_difference(stored.get(part), value, part)
        if different is not None:
            key, before, now = different
            raise InputError(
                "the sweep to resume has other settings or data",
                where=f"{folder.name}, {key}",
                expected=before,
                found=now,
                do="pass the original search space, settings and data, or start a new sweep",
            )


def _shaping(request: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a request that affects the result, without tracking settings and cluster size."""
    sweep = {name: value for name, value in request["sweep"].items() if name != "max_concurrent"}
    sweep["base"] = shaping(sweep["base"])
    return {"data": request["data"], "sweep": sweep, "config": shaping(request["config"])}
