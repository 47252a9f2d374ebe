"""A sweep: what is searched, how, and for how long. The files in `tune_configs/` are of this form."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from gtvray.config.base import Section


class Range(Section):
    """A number between two bounds."""

    low: float
    high: float
    log: bool = Field(False, description="spread evenly over orders of magnitude")
    integer: bool = Field(False, description="whole numbers only")

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if self.low >= self.high:
            raise ValueError("an empty range: low must be below high")
        if self.log and self.low <= 0:
            raise ValueError("a log range starts above 0")
        if self.integer and not (self.low.is_integer() and self.high.is_integer()):
            raise ValueError("an integer range has whole bounds")
        return self

    def holds(self, value: Any) -> bool:
        """Whether a value lies in the range."""
        whole = isinstance(value, int) or (isinstance(value, float) and (value.is_integer() or not self.integer))
        return whole and self.low <= value <= self.high


class Choice(Section):
    """One of several values."""

    choice: Annotated[list[Any], Field(min_length=1)]

    def holds(self, value: Any) -> bool:
        """Whether a value is one of the choices."""
        return value in self.choice


class SchedulerConfig(Section):
    """When a trial is stopped early."""

    kind: Literal["asha", "none"] = Field("asha", description="asynchronous successive halving, or none")
    grace_epochs: int = Field(2, ge=1, description="epochs every trial gets")
    reduction_factor: int = Field(3, ge=2, description="one in this many goes on at each rung")


class SweepConfig(Section):
    """A sweep."""

    trials: int = Field(4, ge=1, le=100_000, description="how many configurations are tried")
    max_concurrent: int | None = Field(None, ge=1, description="trials at once; as many as fit if not given")
    searcher: Literal["optuna", "random"] = Field("optuna", description="TPE by Optuna, or at random")
    seed: int = Field(0, ge=0, description="decides what the searcher proposes")
    scheduler: SchedulerConfig = SchedulerConfig()
    time_budget_s: float | None = Field(None, gt=0, description="no new epoch is begun after this")
    base: dict[str, Any] = Field(default_factory=dict, description="dotted keys that hold for every trial")
    space: dict[str, Range | Choice] = Field(description="dotted keys that are searched", min_length=1)
    start: list[dict[str, Any]] = Field(default_factory=list, description="points of the space tried first")
