"""The Pareto front of a sweep with several objectives, and its hypervolume."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gtvray.io import read_json, write_json
from gtvray.tracking.trials import COMPLETED, Trial
from gtvray.tuning.searchers.base import values_of

_FILE = "front.json"


@dataclass(frozen=True)
class Front:
    """The completed trials that are not dominated by another one.

    Attributes:
        objectives: name -> "max" or "min".
        trials: id -> value of each objective, the highest DSC first.
        hypervolume: share of the box from the worst to the ideal point that the front dominates. The ideal is a DSC of
            1 at no cost; the worst a DSC of 0 at the highest costs of a completed trial.
        others: the completed trials that are dominated, and their values.
    """

    objectives: dict[str, str]
    trials: dict[str, list[float]]
    hypervolume: float
    others: dict[str, list[float]] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write it into the folder of the sweep."""
        write_json(folder / _FILE, asdict(self))

    @classmethod
    def load(cls, folder: Path) -> Front | None:
        """Read it from the folder of the sweep; None if there is none."""
        return cls(**read_json(folder / _FILE)) if (folder / _FILE).exists() else None


def pareto_front(objectives: Mapping[Any, str], trials: Sequence[Trial]) -> Front:
    """Return the front of the completed trials.

    Args:
        objectives: name -> "max" or "min", the DSC first.
        trials: record of the trials.
    """
    found = {trial.trial_id: values_of(trial, list(objectives)) for trial in trials if trial.state == COMPLETED}
    values = {name: value for name, value in found.items() if value is not None}
    signs = [1.0 if goal == "max" else -1.0 for goal in objectives.values()]
    gains = {name: [sign * each for sign, each in zip(signs, value, strict=True)] for name, value in values.items()}
    front = [name for name in gains if not any(_beats(gains[other], gains[name]) for other in gains)]
    front.sort(key=lambda name: -values[name][0])
    shares = [_shares(values[name], values.values()) for name in front]
    others = {name: value for name, value in values.items() if name not in front}
    return Front(dict(objectives), {name: values[name] for name in front}, round(_volume(shares), 6), others)


def _beats(one: Sequence[float], other: Sequence[float]) -> bool:
    return all(a >= b for a, b in zip(one, other, strict=True)) and list(one) != list(other)


def _shares(value: Sequence[float], every: Iterable[Sequence[float]]) -> tuple[float, ...]:
    """Return how far a trial is from the worst (0) to the ideal (1) value of each objective."""
    worst = [max(each) for each in zip(*every, strict=True)]
    return (value[0], *(1 - cost / most if most else 1.0 for cost, most in zip(value[1:], worst[1:], strict=True)))


def _volume(points: Sequence[tuple[float, ...]]) -> float:
    """Return the volume of the union of the boxes from the origin to each point, slice by slice along the last axis."""
    if not points:
        return 0.0
    if len(points[0]) == 1:
        return max(point[0] for point in points)
    total, before = 0.0, 0.0
    for level in sorted({point[-1] for point in points}):
        total += (level - before) * _volume([point[:-1] for point in points if point[-1] >= level])
        before = level
    return total
