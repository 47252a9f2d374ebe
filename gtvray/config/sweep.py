"""A sweep file, as in `tune_configs/`: search space, searcher, scheduler and budget."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from gtvray.config.schema import Config, check_key, read_yaml, with_dotted
from gtvray.config.section import Section, build, leaves
from gtvray.errors import ConfigError

# Keys that may differ between trials; the others hold for a sweep.
_SEARCHABLE = (
    "preprocessing.windows_hu",
    "augmentation.",
    "network.",
    "loss.",
    "optimizer.",
    "training.",
    "inference.",
)
_PLANNED_ONCE = (
    "training.epochs",
    "training.time_budget_s",
    "training.num_workers",
    "training.cpus_per_worker",
    "training.use_gpu",
    "training.gpus_per_worker",
)


class Range(Section):
    """A number between two bounds."""

    low: float
    high: float
    log: bool = Field(False, description="sample uniformly in log space")
    integer: bool = Field(False, description="integers only")

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if self.low >= self.high:
            raise ValueError("an empty range: low must be below high")
        if self.log and self.low <= 0:
            raise ValueError("a log range starts above 0")
        if self.integer and not (self.low.is_integer() and self.high.is_integer()):
            raise ValueError("an integer range needs integer bounds")
        return self

    def holds(self, value: Any) -> bool:
        """Return whether a value lies in the range."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return self.low <= value <= self.high and (not self.integer or float(value).is_integer())

    def corners(self) -> list[float | int]:
        """Return both bounds."""
        return [int(self.low), int(self.high)] if self.integer else [self.low, self.high]


class Choice(Section):
    """One of several values."""

    choice: Annotated[list[Any], Field(min_length=1)]

    def holds(self, value: Any) -> bool:
        """Return whether a value is one of the choices."""
        return value in self.choice

    def corners(self) -> list[Any]:
        """Return every choice."""
        return list(self.choice)


def _kind(value: Any) -> str:
    # Named here, so that an error names the entry and not a branch of a union.
    return "choice" if isinstance(value, Choice) or (isinstance(value, dict) and "choice" in value) else "range"


SpaceEntry = Annotated[Annotated[Range, Tag("range")] | Annotated[Choice, Tag("choice")], Discriminator(_kind)]


class SchedulerConfig(Section):
    """Early stopping of trials."""

    kind: Literal["asha", "none"] = Field("asha", description="asynchronous successive halving, or none")
    grace_epochs: int = Field(2, ge=1, description="epochs that every trial runs before it can be stopped")
    reduction_factor: int = Field(3, ge=2, description="one in this many trials continues at each rung")


class SweepConfig(Section):
    """A hyperparameter sweep."""

    trials: int = Field(4, ge=1, le=100_000, description="number of trials")
    max_concurrent: int | None = Field(None, ge=1, description="maximum trials at once; by default as many as fit")
    searcher: Literal["optuna", "random"] = Field("optuna", description="Optuna's TPE, or random search")
    seed: int = Field(0, ge=0, description="seed of the searcher")
    scheduler: SchedulerConfig = SchedulerConfig()
    time_budget_s: float | None = Field(None, gt=0, description="no new epoch is started after this time")
    base: dict[str, Any] = Field(default_factory=dict, description="settings of every trial, nested or dotted")
    space: dict[str, SpaceEntry] = Field(description="dotted keys that are searched", min_length=1)
    start: list[dict[str, Any]] = Field(default_factory=list, description="points of the space tried first")


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
    for key in [*sweep.base, *sweep.space]:
        check_key(key, path)
    for key in sweep.space:
        _require_searchable(key, sweep, path)
    _require_valid_points(sweep, path)
    return sweep


def _require_searchable(key: str, sweep: SweepConfig, path: Path) -> None:
    if not key.startswith(_SEARCHABLE) or key in _PLANNED_ONCE:
        raise ConfigError(
            "this key cannot be searched",
            where=path,
            expected="a setting of a single trial: " + ", ".join(prefix.rstrip(".") for prefix in _SEARCHABLE),
            found=key,
            do="set it under base: data and workers are planned once per sweep",
        )
    if key in sweep.base:
        raise ConfigError("a key is both fixed and searched", where=path, found=key, do="keep one of the two")


def _require_valid_points(sweep: SweepConfig, path: Path) -> None:
    corners = [{key: corner} for key, entry in sweep.space.items() for corner in entry.corners()]
    for point in [*corners, *sweep.start]:
        unknown = set(point) - set(sweep.space)
        if unknown:
            raise ConfigError("a start point has a key outside the space", where=path, found=sorted(unknown))
        for key, value in point.items():
            if not sweep.space[key].holds(value):
                raise ConfigError(f"a start point lies outside the range of {key}", where=path, found=value)
        with_dotted(Config(), {**sweep.base, **point}, path)
