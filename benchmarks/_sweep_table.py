"""Record the scores of real trainings with many settings, per epoch and case, as a table for replays.

A line of the table is a training: `{"point": settings, "selection": [[DSC of each case], ...], "held_out": [...],
"seconds": [...]}` with an entry per epoch. The first line is its header. A training that is interrupted is repeated; a
finished one is kept.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import qmc

from gtvray.config import Config, Range, SweepConfig, load_config, with_dotted
from gtvray.io import append_json_line, read_json_lines
from gtvray.tuning.space import Point, Space

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Plan:
    """Trainings that a table records.

    Attributes:
        settings: of all trainings, as `key=value`.
        space: the search space.
        configs: number of trainings, the first with the default settings.
        seed: of the points, the split and the trainings.
    """

    settings: tuple[str, ...]
    space: Mapping[str, Any]
    configs: int
    seed: int


# So that an epoch with its scores takes seconds on a core.
_SELECTION_CASES, _HELD_OUT_CASES = 12, 16
SPACE: dict[str, Any] = {
    "optimizer.lr": {"low": 1e-4, "high": 3e-2, "log": True},
    "optimizer.weight_decay": {"low": 1e-5, "high": 1e-1, "log": True},
    "optimizer.warmup_share": {"low": 0.0, "high": 0.3},
    "training.foreground_share": {"low": 0.1, "high": 0.9},
    "augmentation.strength": {"low": 0.0, "high": 1.0},
    "loss.kind": {"choice": ["dice_ce", "dice_focal", "dice_topk"]},
    "network.kind": {"choice": ["unet", "residual_unet"]},
}
_COMMON = (
    "preprocessing.windows_hu=[[-200, 300]]",
    "network.features=[8, 16, 32]",
    "training.batch_size=2",
    "training.selection_cases=1",
    "training.calibrate=false",
    "split.selection_share=0.2",
    "split.held_out_share=0.2",
    "inference.overlap=0.25",
)
PLANS: dict[str, Plan] = {
    "main": Plan(
        (
            *_COMMON,
            "preprocessing.spacing_mm=[12, 12, 12]",
            "training.patch_ijk=[32, 24, 24]",
            "training.epochs=20",
            "training.steps_per_epoch=12",
        ),
        SPACE,
        96,
        0,
    ),
    "second": Plan(
        (
            *_COMMON,
            "preprocessing.spacing_mm=[14, 14, 14]",
            "training.patch_ijk=[32, 24, 24]",
            "training.epochs=16",
            "training.steps_per_epoch=10",
            "split.seed=1",
            "training.seed=1",
        ),
        SPACE,
        48,
        1,
    ),
}


@dataclass(frozen=True)
class Row:
    """A recorded training.

    Attributes:
        point: its settings.
        selection: DSC of the selection cases, (epochs, cases).
        held_out: DSC of the untouched cases, (epochs, cases).
        seconds: seconds of each epoch.
    """

    point: Point
    selection: Scores
    held_out: Scores
    seconds: list[float]

    @cached_property
    def curve(self) -> list[float]:
        """Mean DSC of the selection cases after each epoch."""
        return [float(value) for value in self.selection.mean(axis=1)]


@dataclass(frozen=True)
class Table:
    """Recorded trainings, the first with the default settings."""

    space: dict[str, Any]
    settings: list[str]
    rows: list[Row]

    @property
    def epochs(self) -> int:
        """Epochs of a training."""
        return len(self.rows[0].curve)

    @property
    def config(self) -> Config:
        """Settings of all trainings."""
        return load_config(overrides=self.settings)

    def half(self, which: int) -> Table:
        """Return every second row after the default's, which both halves have."""
        return Table(self.space, self.settings, [self.rows[0], *self.rows[1 + which :: 2]])

    def sample(self, seed: int, share: float) -> Table:
        """Return the default's row and a random share of the others."""
        count = round((len(self.rows) - 1) * share)
        drawn = np.random.default_rng([seed, 2]).choice(np.arange(1, len(self.rows)), count, replace=False)
        return Table(self.space, self.settings, [self.rows[0], *(self.rows[row] for row in sorted(drawn))])

    def without_default(self, seed: int) -> Table:
        """Return all rows but the default's in random order, for searches that do not know the default settings."""
        order = np.random.default_rng([seed, 1]).permutation(np.arange(1, len(self.rows)))
        return Table(self.space, self.settings, [self.rows[row] for row in order])

    def positions(self) -> Scores:
        """Return the rows' points in the unit cube, (rows, keys)."""
        entries = SweepConfig.model_validate({"space": self.space}).space
        return np.array([[_position(entry, row.point[key]) for key, entry in entries.items()] for row in self.rows])


def _position(entry: Any, value: Any) -> float:
    if not isinstance(entry, Range):
        return entry.choice.index(value) / max(1, len(entry.choice) - 1)
    low, high, value = (np.log(each) if entry.log else each for each in (entry.low, entry.high, float(value)))
    return float((value - low) / (high - low))


def read_table(path: Path) -> Table | None:
    """Read a table; None if it has fewer than two trainings."""
    lines = read_json_lines(path)
    if len(lines) < 3:
        return None
    rows = [
        Row(line["point"], np.array(line["selection"]), np.array(line["held_out"]), line["seconds"])
        for line in lines[1:]
    ]
    return Table(lines[0]["space"], lines[0]["settings"], rows)


def record(plan: Plan, data: Path, path: Path) -> None:
    """Train the settings of a plan that a table lacks, one after the other."""
    from gtvray.data import CaseCache, open_project
    from gtvray.datasets import index_dataset

    config = load_config(overrides=list(plan.settings))
    space = Space(SweepConfig.model_validate({"space": plan.space}).space, config)
    lines = read_json_lines(path)
    if not lines:
        append_json_line(path, {"space": dict(plan.space), "settings": list(plan.settings), "data": data.name})
    known = [line["point"] for line in lines[1:]]
    work = Path(tempfile.gettempdir()) / f"gtvray-{path.stem}"
    project = open_project(index_dataset(data), config, cache=work / "cache", splits=work / "splits")
    cache = CaseCache(work / "cache", config.preprocessing, config.cache)
    sides = (project.selection[:_SELECTION_CASES], cache.prepare_all(project.held_out[:_HELD_OUT_CASES]))
    for number, point in enumerate(_points(space, plan)):
        if point in known:
            continue
        began = time.perf_counter()
        scores = [*_train(with_dotted(config, point), project.train, sides)]
        selection, held_out, seconds = zip(*scores, strict=True)
        append_json_line(path, {"point": point, "selection": selection, "held_out": held_out, "seconds": list(seconds)})
        sys.stderr.write(f"{number + 1}/{plan.configs} in {time.perf_counter() - began:.0f} s\n")


def _points(space: Space, plan: Plan) -> list[Point]:
    positions = qmc.Halton(len(space.entries), scramble=True, rng=np.random.default_rng(plan.seed))
    rows = positions.random(plan.configs - 1).round(4)
    return [space.default(), *(space.at(row.tolist()) for row in rows)]


def _train(config: Config, train: Any, sides: Any) -> Iterator[tuple[list[float], list[float], float]]:
    """Yield the DSC of the selection and the held-out cases and the seconds of each epoch.

    The checkpoint of an epoch is complete once the next one is reported.
    """
    from gtvray.training import fit

    with tempfile.TemporaryDirectory() as folder:
        before = None
        for report in fit(config, train, sides[0], Path(folder)):
            if before is not None:
                yield _scored(config, before, sides)
            before = report
        yield _scored(config, before, sides)


def _scored(config: Config, report: Any, sides: Any) -> tuple[list[float], list[float], float]:
    from gtvray.training import TrainedNetwork, calibration_scores, training_device

    device = training_device(config)
    network = TrainedNetwork.load(Path(report.checkpoint)).build(config).to(device)
    selection, held_out = (
        [round(float(value), 3) for value in calibration_scores(config, network, cases, device)[:, 0]]
        for cases in sides
    )
    return selection, held_out, round(report.seconds, 2)
