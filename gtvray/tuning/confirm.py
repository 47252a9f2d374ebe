"""Compare the best trial of a sweep with the default settings on held-out cases that the search did not use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from gtvray.config import Config
from gtvray.data import CachedCase
from gtvray.evaluation.statistics import paired_difference
from gtvray.experiments.tasks import keep, on_cluster
from gtvray.io import read_json, write_json
from gtvray.training import TrainedNetwork, best_setting, calibration_scores, training_device

# With fewer cases the confidence interval of a paired difference is not reliable.
FEWEST_CASES = 10
_SEED = 0
_FILE = "confirmation.json"
Verdict = Literal["better", "not better", "worse", "undecided", "default"]


@dataclass(frozen=True)
class Confirmation:
    """Comparison of the best trial with the default settings.

    Attributes:
        verdict: "better" or "worse" if the 95 % interval of the paired difference excludes zero, and "not better" if it
            does not; "undecided" if there is nothing to compare, "default" if the default settings are the best.
        text: the verdict as a sentence.
        best_dsc, default_dsc: DSC of each held-out case, on the prepared grid.
        mean, low, high: paired difference with its 95 % interval.
    """

    verdict: Verdict
    text: str
    best_dsc: tuple[float, ...] = ()
    default_dsc: tuple[float, ...] = ()
    mean: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def offers_default(self) -> bool:
        """Whether the bundle of the default settings is an alternative to that of the best trial."""
        return self.verdict in ("not better", "worse")

    def save(self, folder: Path) -> None:
        """Write it into the folder of the sweep."""
        write_json(folder / _FILE, asdict(self))

    @classmethod
    def load(cls, folder: Path) -> Confirmation | None:
        """Read it from the folder of the sweep; None if there is none."""
        if not (folder / _FILE).exists():
            return None
        stored: Any = {
            key: tuple(value) if isinstance(value, list) else value for key, value in read_json(folder / _FILE).items()
        }
        return cls(**stored)


def compare_dsc(best: str, best_dsc: Sequence[float], default_dsc: Sequence[float]) -> Confirmation:
    """Compare the DSC of the best trial with that of the default settings, case by case.

    Args:
        best: id of the best trial.
        best_dsc: its DSC of each case.
        default_dsc: DSC of the same cases with the default settings.
    """
    found = paired_difference(list(best_dsc), list(default_dsc), seed=_SEED)
    interval = f"{found.mean:+.3f} DSC (95 % {found.low:+.3f} to {found.high:+.3f}, {found.n} held-out cases)"
    verdict: Verdict = "better" if found.low > 0 else "worse" if found.high < 0 else "not better"
    text = {
        "better": f"{best} is better than the default settings: {interval}",
        "worse": f"{best} is worse than the default settings: {interval}; use the bundle of the default settings",
        "not better": f"{best} is not better than the default settings beyond chance: {interval}; "
        "the bundle of the default settings is as good",
    }[verdict]
    return Confirmation(
        verdict, text, tuple(best_dsc), tuple(default_dsc), mean=found.mean, low=found.low, high=found.high
    )


def undecided(reason: str) -> Confirmation:
    """Return the outcome of a sweep whose best trial cannot be compared with the default settings."""
    return Confirmation("undecided", f"undecided whether the best is better than the default settings: {reason}")


def held_out_dsc(
    trials: Sequence[tuple[Path, Config]], selection: Sequence[CachedCase], held_out: Sequence[CachedCase]
) -> list[list[float]]:
    """Score trials on held-out cases as they would be exported: checkpoint and threshold chosen on the selection cases.

    The tasks run on the connected cluster.

    Args:
        trials: best checkpoint and settings of each.
        selection: cases that checkpoint and threshold are chosen on.
        held_out: cases to score.

    Returns:
        the DSC of each case, by trial.
    """
    return [
        on_cluster(_dsc, [(checkpoint, config, selection, held_out)], config, lambda _: None)[0]
        for checkpoint, config in trials
    ]


def _dsc(best: Path, config: Config, selection: Sequence[CachedCase], held_out: Sequence[CachedCase]) -> list[float]:
    kept, scores = keep(best, config, selection)
    chosen, _ = best_setting(config, scores)
    fixed: dict[str, Any] = {"training": config.training.model_copy(update={"calibrate": False}), "inference": chosen}
    settings, device = config.model_copy(update=fixed), training_device(config)
    network: torch.nn.Module = TrainedNetwork.load(kept).build(config).to(device)
    found: NDArray[np.float64] = calibration_scores(settings, network, held_out, device)
    return [float(value) for value in found[:, 0]]
