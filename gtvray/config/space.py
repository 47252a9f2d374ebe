"""Entries of a search space: ranges of numbers and choices, which may depend on other settings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from gtvray.config.section import Section


class _Entry(Section):
    """Fields of every entry."""

    when: dict[str, Any] = Field(
        default_factory=dict,
        description="the entry applies only if each of these settings has this value, or one of these values",
    )

    @property
    def conditions(self) -> dict[str, list[Any]]:
        """Values of other settings that the entry requires: dotted key -> accepted values."""
        return {key: value if isinstance(value, list) else [value] for key, value in self.when.items()}


class Range(_Entry):
    """A number between two bounds."""

    low: float
    high: float
    log: bool = Field(False, description="sample uniformly in log space")
    integer: bool = Field(False, description="integers only")
    step: float | None = Field(None, gt=0, description="multiples of this above `low` only")
    points: int = Field(3, ge=2, description="number of values in a grid search")

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if self.low >= self.high:
            raise ValueError("an empty range: low must be below high")
        if self.log and self.low <= 0:
            raise ValueError("a log range starts above 0")
        if self.log and self.step is not None:
            raise ValueError("a log range has no step")
        if self.integer and not all(bound.is_integer() for bound in (self.low, self.high, self.step or 1.0)):
            raise ValueError("an integer range needs integer bounds and an integer step")
        return self

    @property
    def grain(self) -> float | None:
        """Distance between neighbouring values; None for a continuous range."""
        return self.step if self.step is not None else (1.0 if self.integer else None)

    def holds(self, value: Any) -> bool:
        """Return whether a value lies in the range."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not self.low <= value <= self.high:
            return False
        return self.grain is None or math.isclose(value, self._on_grain(value), rel_tol=1e-9, abs_tol=1e-12)

    def corners(self) -> list[float | int]:
        """Return the lowest and the highest value."""
        return [self._typed(self.low), self._typed(self._highest)]

    def at(self, position: float) -> float | int:
        """Map a position in [0, 1) to a value; uniform positions give the sampling distribution of the range."""
        if self.grain is None or self.log:
            # An integer owns the interval up to the next one.
            high = self.high + 1 if self.integer else self.high
            value = self._between(position, self.low, high)
            return int(min(value, self.high)) if self.integer else value
        return self._typed(self.low + int(position * self._levels) * self.grain)

    def nearest(self, value: Any) -> float | int:
        """Return the value of the range that is nearest to a number."""
        inside = min(max(float(value), self.low), self._highest)
        return self._typed(inside if self.grain is None else self._on_grain(inside))

    def grid(self) -> list[float | int]:
        """Return `points` evenly spaced values including both ends, fewer if the range has fewer."""
        positions = [index / (self.points - 1) for index in range(self.points)]
        values = [self._between(position, self.low, self._highest) for position in positions]
        if self.grain is not None:
            values = [self._on_grain(value) for value in values]
        return list(dict.fromkeys(self._typed(value) for value in values))

    @property
    def _levels(self) -> int:
        assert self.grain is not None
        return int((self.high - self.low) / self.grain + 1e-9) + 1

    @property
    def _highest(self) -> float:
        return self.high if self.grain is None else self.low + (self._levels - 1) * self.grain

    def _between(self, position: float, low: float, high: float) -> float:
        if position >= 1:
            return high
        if self.log:
            return float(low * (high / low) ** position)
        return low + position * (high - low)

    def _on_grain(self, value: float) -> float:
        assert self.grain is not None
        return self.low + min(round((value - self.low) / self.grain), self._levels - 1) * self.grain

    def _typed(self, value: float) -> float | int:
        return int(value) if self.integer else value


class Choice(_Entry):
    """One of several values."""

    choice: Annotated[list[Any], Field(min_length=1)]

    @field_validator("choice")
    @classmethod
    def _different(cls, value: list[Any]) -> list[Any]:
        if any(each in value[:index] for index, each in enumerate(value)):
            raise ValueError("the values must differ")
        return value

    def holds(self, value: Any) -> bool:
        """Return whether a value is one of the choices."""
        return value in self.choice

    def corners(self) -> list[Any]:
        """Return every choice."""
        return list(self.choice)

    def at(self, position: float) -> Any:
        """Return the value at a position in [0, 1)."""
        return self.choice[int(position * len(self.choice))]

    def nearest(self, value: Any) -> Any:
        """Return a value if it is one of the choices, and the first choice otherwise."""
        return value if self.holds(value) else self.choice[0]

    def grid(self) -> list[Any]:
        """Return every choice."""
        return list(self.choice)


def applies(entry: Range | Choice, settings: Mapping[str, Any]) -> bool:
    """Return whether the conditions of an entry are met by some settings; a setting that is absent meets none."""
    return all(key in settings and settings[key] in values for key, values in entry.conditions.items())


def _kind(value: Any) -> str:
    # Chosen here, so that an error is about the entry and not about every branch of a union.
    choice = isinstance(value, Choice) or (isinstance(value, dict) and "choice" in value)
    return "choice-entry" if choice else "range-entry"


SpaceEntry = Annotated[
    Annotated[Range, Tag("range-entry")] | Annotated[Choice, Tag("choice-entry")], Discriminator(_kind)
]
