"""The training loop on one worker: learning, repeatability, resuming and errors."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gtvray.config import Config, with_dotted
from gtvray.data import CachedCase
from gtvray.errors import TrainingError
from gtvray.inference import Predictor
from gtvray.models import Checkpoint, load_weights
from gtvray.training import EPOCH_METRICS, EpochReport, export_bundle, fit, kept_checkpoint
from gtvray.training.state import TrainingState

# The package exports the function of that name.
_LOOP = import_module("gtvray.training.fit")
Fit = Callable[..., list[EpochReport]]
# Values that must repeat: everything but durations and paths.
_FIGURES = ("epoch", "train_loss", "selection_dsc", "best_dsc", "lr")


@pytest.fixture
def run(config: Config, train: list[CachedCase], selection: list[CachedCase]) -> Fit:
    """Trains with dotted changes to the config, as far as `epochs` reports."""

    def run(
        folder: Path, changes: dict[str, Any] | None = None, epochs: int | None = None, resume: Path | None = None
    ) -> list[EpochReport]:
        reports = fit(with_dotted(config, changes or {}), train, selection, folder, resume=resume)
        return list(islice(reports, epochs))

    return run


def figures(reports: list[EpochReport]) -> list[tuple[float, ...]]:
    return [tuple(getattr(report, name) for name in _FIGURES) for report in reports]


def weights(checkpoint: str) -> dict[str, torch.Tensor]:
    return Checkpoint.load(Path(checkpoint)).tensors


def test_training_lowers_the_loss(run: Fit, tmp_path: Path) -> None:
    quick = {"training.steps_per_epoch": 12, "training.epochs": 5, "optimizer.lr": 0.01, "training.ema_decay": 0.8}
    reports = run(tmp_path, quick)
    assert [report.epoch for report in reports] == [1, 2, 3, 4, 5]
    assert reports[-1].train_loss < 0.85 * reports[0].train_loss
    assert reports[-1].best_dsc == max(report.selection_dsc for report in reports)
    best = max(reports, key=lambda report: report.selection_dsc)
    assert reports[-1].best_checkpoint == best.checkpoint
    assert all(0 <= report.data_wait_share <= 1 and report.patches_per_s > 0 for report in reports)
    assert all(isinstance(reports[0].as_dict()[name], float | int) for name in EPOCH_METRICS)


@pytest.mark.parametrize(
    "changes",
    [
        {"network.dropout": 0.3},
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param({"optimizer.kind": "sgd"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_killed_training_resumes_with_the_same_results(run: Fit, tmp_path: Path, changes: dict[str, Any]) -> None:
    whole = run(tmp_path / "whole", changes)
    started = run(tmp_path / "parts", changes, epochs=2)
    torch.manual_seed(12345)
    resumed = run(tmp_path / "parts", changes)
    assert figures(started + resumed) == figures(whole)
    ours, theirs = weights(resumed[-1].checkpoint), weights(whole[-1].checkpoint)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_losses_follow_the_seed(run: Fit, tmp_path: Path) -> None:
    first, again = run(tmp_path / "a", epochs=2), run(tmp_path / "b", epochs=2)
    other = run(tmp_path / "c", {"training.seed": 1}, epochs=2)
    assert figures(first) == figures(again)
    assert first[0].train_loss != other[0].train_loss


def test_the_newest_two_checkpoints_and_the_best_are_kept(
    run: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.1, 0.9, 0.2, 0.3, 0.4, 0.95])
    monkeypatch.setattr(_LOOP, "selection_dsc", lambda *_: np.array([next(scores)]))
    kept = []
    for report in run(tmp_path, {"training.epochs": 6, "training.steps_per_epoch": 1}, epochs=5):
        assert Path(report.best_checkpoint).name == f"epoch-{min(report.epoch, 2):05d}"
    kept = sorted(entry.name for entry in tmp_path.iterdir() if entry.name != ".writer.json")
    assert kept == ["epoch-00002", "epoch-00004", "epoch-00005"]
    last = run(tmp_path, {"training.epochs": 6, "training.steps_per_epoch": 1})
    assert [report.best_dsc for report in last] == [0.95]
    kept = sorted(entry.name for entry in tmp_path.iterdir() if entry.name != ".writer.json")
    assert kept == ["epoch-00005", "epoch-00006"]


def test_resuming_in_another_folder_names_an_existing_best_checkpoint(
    run: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.9, 0.2, 0.3])
    monkeypatch.setattr(_LOOP, "selection_dsc", lambda *_: np.array([next(scores)]))
    first = run(tmp_path / "a", epochs=2)
    (gone_on,) = run(tmp_path / "b", epochs=1, resume=Path(first[-1].checkpoint))
    assert gone_on.epoch == 3
    assert weights(gone_on.best_checkpoint)


def test_a_finished_training_yields_nothing(run: Fit, tmp_path: Path) -> None:
    assert len(run(tmp_path, {"training.epochs": 1})) == 1
    assert run(tmp_path, {"training.epochs": 1}) == []


def test_a_persistently_nan_loss_ends_the_training(
    config: Config, train: list[CachedCase], selection: list[CachedCase], tmp_path: Path
) -> None:
    absurd = config.model_copy(update={"optimizer": config.optimizer.model_copy(update={"lr": 1e30})})
    with pytest.raises(TrainingError, match="not finite") as caught:
        list(fit(absurd, train, selection, tmp_path))
    assert "after 3 retries" in caught.value.fields["where"]
    assert "optimizer.lr" in caught.value.fields["do"]
    assert len(str(caught.value).splitlines()) <= 5


def test_a_nan_gradient_never_reaches_the_weights(run: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The square root of zero is finite, its gradient is not."""
    monkeypatch.setattr(
        "gtvray.training.gradients.build_loss", lambda *_: lambda logits, *_: (0 * logits).sqrt().mean()
    )
    with pytest.raises(TrainingError, match="not finite"):
        run(tmp_path, {"training.steps_per_epoch": 1})
    assert [entry.name for entry in tmp_path.iterdir()] == [".writer.json"]


@pytest.mark.parametrize("changes", [{"network.dropout": 0.1}, {"network.features": [4, 8, 16]}], ids=str)
def test_a_checkpoint_of_another_network_is_refused(run: Fit, tmp_path: Path, changes: dict[str, Any]) -> None:
    (report,) = run(tmp_path, epochs=1)
    with pytest.raises(TrainingError, match="another network"):
        run(tmp_path, changes)
    with pytest.raises(TrainingError, match="another network"):
        run(tmp_path / "elsewhere", changes, resume=Path(report.checkpoint))


def test_the_bundle_holds_the_averaged_network(
    run: Fit, config: Config, selection: list[CachedCase], tmp_path: Path
) -> None:
    (report,) = run(tmp_path / "run", epochs=1)
    chosen = kept_checkpoint(Path(report.checkpoint), config, selection, torch.device("cpu"))
    bundle = export_bundle([chosen], config, tmp_path / "bundle", {"run": "r1"})
    assert (bundle.info["run"], bundle.info["epoch"], bundle.patch_ijk) == ("r1", 1, config.training.patch_ijk)
    state = TrainingState.build(config)
    state.restore(Checkpoint.load(Path(report.checkpoint)))
    patch = torch.rand(2, 1, *config.training.patch_ijk)
    predictor = Predictor(bundle, threads=1)
    answer = torch.from_numpy(predictor.forward([one.numpy() for one in patch]))[:, None]
    with torch.no_grad():
        expected = state.averaged_network()(patch)
        load_weights(state.averaged_network(), dict(state.network.named_parameters()))
        raw = state.averaged_network()(patch)
    torch.testing.assert_close(answer, expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(answer, raw, rtol=1e-5, atol=1e-6), "it must be the average, not the last weights"


def test_training_reads_the_copies_on_the_node_s_own_disk(
    config: Config, train: list[CachedCase], selection: list[CachedCase], tmp_path: Path
) -> None:
    """The same losses; the cases that are scored are copied as well."""
    short = with_dotted(config, {"training.epochs": 1})
    local = with_dotted(short, {"cache.local": str(tmp_path / "own")})
    losses = [[report.train_loss for report in fit(each, train, selection, tmp_path / name)]
              for name, each in (("shared", short), ("local", local))]  # fmt: skip
    assert losses[0] == losses[1]
    copied = {path.name for path in (tmp_path / "own").iterdir() if not path.name.startswith(".")}
    assert copied == {case.folder.name for case in (*train, *selection)}
