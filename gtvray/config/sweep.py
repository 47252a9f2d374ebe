"""A sweep file, as in `tune_configs/`: search space, searcher, scheduler and budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from gtvray.config.schema import Config, check_key, read_yaml, with_dotted
from gtvray.config.section import Section, build, leaves
from gtvray.config.space import SpaceEntry, applies
from gtvray.errors import ConfigError

# Keys that may differ between trials; all others are the same for the whole sweep.
_SEARCHABLE = (
    "preprocessing.windows_hu",
    "augmentation.",
    "network.",
    "loss.",
    "optimizer.",
    "training.",
)
_PLANNED_ONCE = (
    "training.epochs",
    "training.time_budget_s",
    "training.num_workers",
    "training.cpus_per_worker",
    "training.use_gpu",
    "training.gpus_per_worker",
)
# Keys that may change while a training runs, as with population-based training.
_MUTABLE = (
    "augmentation.",
    "loss.",
    "optimizer.lr",
    "optimizer.momentum",
    "optimizer.weight_decay",
    "optimizer.clip_norm",
    "training.foreground_share",
)
# Keys that determine the score of a trial: all trials are compared on the same cases at the same threshold.
_COMPARED_BY = ("training.selection_cases", "inference.")


class SchedulerConfig(Section):
    """Early stopping of trials."""

    kind: Literal["asha", "hyperband", "median", "pasha", "top_k", "pbt", "none"] = Field(
        "asha",
        description="asha: successive halving, asynchronous; hyperband: several brackets of it; median: stop a trial "
        "below the median of the others; pasha: halving whose rungs grow only while the ranking changes; top_k: all "
        "trials to grace_epochs, then the best `keep` to the end; pbt: population-based training, where trials copy "
        "the weights of better ones and change their settings every grace_epochs; none: every trial to the end",
    )
    grace_epochs: int = Field(
        2, ge=1, description="epochs that every trial runs before it can be stopped; the interval of pbt"
    )
    reduction_factor: int = Field(3, ge=2, description="one in this many trials continues at each rung")
    keep: int = Field(3, ge=1, description="number of trials that top_k trains to the end")

    def rungs(self, epochs: int) -> list[int]:
        """Return the epochs at which a trial of `epochs` epochs may be stopped, in order.

        There are none with "median", which compares after every epoch.
        """
        if self.kind in ("median", "none", "pbt"):
            return []
        found, rung = [], self.grace_epochs
        while rung < epochs:
            found.append(rung)
            rung *= self.reduction_factor
        return found[:1] if self.kind == "top_k" else found


class SweepConfig(Section):
    """A hyperparameter sweep."""

    trials: int = Field(4, ge=1, le=100_000, description="number of trials, the one with the default settings included")
    max_concurrent: int | None = Field(None, ge=1, description="maximum trials at once; by default as many as fit")
    searcher: Literal["optuna", "gp", "random", "grid"] = Field(
        "optuna",
        description="optuna: the tree-structured Parzen estimator (TPE); gp: a Gaussian process, for few numbers; both "
        "after a quasi-random start. Or random search, or a grid",
    )
    seed: int = Field(0, ge=0, description="seed of the searcher; the trainings have training.seed")
    repeats: int = Field(
        1,
        ge=1,
        le=100,
        description="trials of each point, with seeds training.seed, training.seed + 1 and so on; points are compared "
        "by their mean",
    )
    folds: int = Field(
        1,
        ge=1,
        le=100,
        description="number of folds of the training and selection cases; a trial trains a point on one of them. A "
        "point that is significantly worse than the best on the cases of its folds so far gets no further fold, and "
        "the bundle of the best has the networks of all its folds",
    )
    scheduler: SchedulerConfig = SchedulerConfig()
    time_budget_s: float | None = Field(
        None, gt=0, description="no new epoch is started after this time; the time before a resume counts"
    )
    objectives: dict[Literal["dsc", "latency_ms", "peak_mb"], Literal["max", "min"]] = Field(
        {"dsc": "max"},
        description="what trials are compared by: dsc, alone or with latency_ms and peak_mb, time and memory of a "
        "forward pass for one patch. The scheduler uses dsc alone; the searcher looks for the Pareto front",
    )
    target: float | None = Field(None, gt=0, le=1, description="stop once a trial has this selection DSC")
    plateau: int | None = Field(
        None, ge=1, description="stop once this many trials in a row have ended without a better one"
    )
    base: dict[str, Any] = Field(
        default_factory=dict,
        description="settings of every trial, nested or dotted; key=value on the command line replaces them",
    )
    space: dict[str, SpaceEntry] = Field(description="dotted keys that are searched", min_length=1)
    start: list[dict[str, Any]] = Field(
        default_factory=list, description="points of the space tried first, after the default settings"
    )

    warm_start: list[str] = Field(
        default_factory=list,
        description="names of earlier sweeps on the same data, from whose completed trials optuna or gp learns",
    )

    def without_base(self, settings: Sequence[str]) -> SweepConfig:
        """Return the sweep without the settings of its base that `key=value` settings replace."""
        replaced = {setting.partition("=")[0] for setting in settings}
        return self.model_copy(update={"base": {key: value for key, value in self.base.items() if key not in replaced}})

    @field_validator("objectives")
    @classmethod
    def _directions(cls, objectives: dict[str, str]) -> dict[str, str]:
        expected = {name: "max" if name == "dsc" else "min" for name in objectives}
        if objectives != expected or "dsc" not in objectives:
            raise ValueError("dsc: max is required; latency_ms and peak_mb are minimised")
        return objectives

    @field_validator("space")
    @classmethod
    def _conditions_possible(cls, space: dict[str, SpaceEntry]) -> dict[str, SpaceEntry]:
        before: list[str] = []
        for key, entry in space.items():
            for condition, values in entry.conditions.items():
                if condition in space and condition not in before:
                    raise ValueError(f"{key} depends on {condition}, which must come before it in the space")
                if condition in space and not any(space[condition].holds(value) for value in values):
                    raise ValueError(f"{key} never applies: {condition} does not take any of {values}")
            before.append(key)
        return space


def load_sweep(path: Path) -> SweepConfig:
    """Read a sweep file and validate its keys and values against the schema.

    Raises:
        NotFoundError: no such file.
        ConfigError: an unknown key, a wrong type, an empty range, or a value the schema refuses.
    """
    values = read_yaml(path)
    if isinstance(values.get("base"), dict):
        values["base"] = dict(leaves(values["base"]))
    sweep = build(SweepConfig, values, path)
    conditions = [condition for entry in sweep.space.values() for condition in entry.conditions]
    for key in [*sweep.base, *sweep.space, *conditions]:
        check_key(key, path)
    for key in sweep.space:
        _require_searchable(key, sweep, path)
    _require_consistent_folds(sweep, path)
    _require_valid_points(sweep, path)
    return sweep


def _require_consistent_folds(sweep: SweepConfig, path: Path) -> None:
    if sweep.folds == 1:
        return
    others = {
        f"scheduler.kind: {sweep.scheduler.kind}": sweep.scheduler.kind != "none",
        f"repeats: {sweep.repeats}": sweep.repeats > 1,
        f"target: {sweep.target}": sweep.target is not None,
        f"plateau: {sweep.plateau}": sweep.plateau is not None,
        f"objectives: {', '.join(sweep.objectives)}": len(sweep.objectives) > 1,
    }
    found = [text for text, present in others.items() if present]
    if found:
        raise ConfigError(
            "these settings cannot be combined with folds",
            where=path,
            expected="scheduler.kind: none, and neither repeats, target, plateau nor several objectives",
            found="; ".join(found),
            do="set folds: 1, or remove the others",
        )


def _require_searchable(key: str, sweep: SweepConfig, path: Path) -> None:
    if key.startswith(_COMPARED_BY):
        raise ConfigError(
            "this key cannot be searched",
            where=path,
            expected="a setting that does not change how trials are compared",
            found=key,
            do="set it under base: all trials are scored on the same cases in the same way",
        )
    if not key.startswith(_SEARCHABLE) or key in _PLANNED_ONCE:
        raise ConfigError(
            "this key cannot be searched",
            where=path,
            expected="a setting of a single trial: " + ", ".join(prefix.rstrip(".") for prefix in _SEARCHABLE),
            found=key,
            do="set it under base: data and workers are planned once per sweep",
        )
    if sweep.warm_start and sweep.searcher not in ("optuna", "gp"):
        raise ConfigError(
            "this searcher cannot use earlier sweeps",
            where=path,
            found=f"warm_start with {sweep.searcher}",
            do="use optuna or gp",
        )
    if sweep.repeats > 1 and sweep.scheduler.kind == "pbt":
        raise ConfigError(
            "points cannot be repeated if their settings change during the training",
            where=path,
            found="repeats with scheduler.kind pbt",
            do="set repeats: 1, or use another scheduler",
        )
    if len(sweep.objectives) > 1 and sweep.searcher == "gp":
        raise ConfigError(
            "the Gaussian process has one objective", where=path, found="searcher: gp", do="use optuna, random or grid"
        )
    if (sweep.repeats > 1 or sweep.folds > 1) and key == "training.seed":
        raise ConfigError("repeats and folds set this key", where=path, found=key, do="remove it from the space")
    if sweep.scheduler.kind == "pbt" and (not key.startswith(_MUTABLE) or sweep.space[key].when):
        raise ConfigError(
            "this key cannot change during a training",
            where=path,
            expected="with scheduler.kind pbt, without conditions: " + ", ".join(each.rstrip(".") for each in _MUTABLE),
            found=key,
            do="set it under base, or use another scheduler",
        )
    if key in sweep.base:
        raise ConfigError("a key is both fixed and searched", where=path, found=key, do="keep one of the two")


def _require_valid_points(sweep: SweepConfig, path: Path) -> None:
    for key, entry in sweep.space.items():
        met = {condition: values[0] for condition, values in entry.conditions.items()}
        for corner in entry.corners():
            with_dotted(Config(), {**sweep.base, **met, key: corner}, path)
    for point in sweep.start:
        _require_in_space(point, sweep, path)
        with_dotted(Config(), {**sweep.base, **point}, path)


def _require_in_space(point: Mapping[str, Any], sweep: SweepConfig, path: Path) -> None:
    unknown = set(point) - set(sweep.space)
    if unknown:
        raise ConfigError(
            "a start point has a key outside the space",
            where=path,
            found=sorted(unknown),
            do="add the key to the space, or set it under base",
        )
    for key, value in point.items():
        entry = sweep.space[key]
        if not entry.holds(value):
            raise ConfigError(f"a start point lies outside the range of {key}", where=path, found=value)
        if not applies(entry, {**sweep.base, **point}):
            raise ConfigError(f"a start point sets {key}, which does not apply to it", where=path, found=dict(point))
