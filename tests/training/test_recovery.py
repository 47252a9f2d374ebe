"""Faults in a training's own process: damaged checkpoints, NaN losses, full disks, exhausted memory."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from importlib import import_module
from itertools import islice
from pathlib import Path

import pytest
import torch

from gtvray.config import Config, with_dotted
from gtvray.data import CachedCase
from gtvray.errors import InputError, ResourceError, TrainingError
from gtvray.failpoints import arm
from gtvray.models import Checkpoint
from gtvray.training import EpochReport, fit

Fit = Callable[..., Iterator[EpochReport]]
_FIGURES = ("epoch", "train_loss", "selection_dsc", "best_dsc", "lr", "retries")


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    arm("")


@pytest.fixture
def run(config: Config, train: list[CachedCase], selection: list[CachedCase]) -> Fit:
    """`fit` with dotted changes to the config."""

    def run(folder: Path, known_epoch: int | None = None, **changes: object) -> Iterator[EpochReport]:
        dotted = {f"training.{name}": value for name, value in changes.items()}
        return fit(with_dotted(config, dotted), train, selection, folder, known_epoch=known_epoch)

    return run


@pytest.fixture(scope="module")
def whole(
    config: Config, train: list[CachedCase], selection: list[CachedCase], tmp_path_factory: pytest.TempPathFactory
) -> list[EpochReport]:
    """An undisturbed training's reports; its folder is not to be written to."""
    return list(fit(config, train, selection, tmp_path_factory.mktemp("whole")))


@pytest.fixture(scope="module")
def cut_off(
    config: Config, train: list[CachedCase], selection: list[CachedCase], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder after three of four epochs; not to be written to."""
    folder = tmp_path_factory.mktemp("cut-off")
    reports = fit(config, train, selection, folder)
    assert [report.epoch for report in islice(reports, 3)] == [1, 2, 3]
    reports.close()  # type: ignore[attr-defined]
    return folder


@pytest.fixture
def cut_copy(cut_off: Path, tmp_path: Path) -> Path:
    """A folder after three of four epochs."""
    return shutil.copytree(cut_off, tmp_path / "cut")


def figures(reports: list[EpochReport]) -> list[tuple[float, ...]]:
    return [tuple(getattr(report, name) for name in _FIGURES) for report in reports]


def same_weights(ours: EpochReport, theirs: EpochReport) -> bool:
    first, second = (Checkpoint.load(Path(report.checkpoint)).tensors for report in (ours, theirs))
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], None]] = {
    "tensor flipped": lambda folder: flip(folder / "state.safetensors", -1),
    "tensors cut": lambda folder: os.truncate(folder / "state.safetensors", 1000),
    "tensors gone": lambda folder: (folder / "state.safetensors").unlink(),
    "tensors empty": lambda folder: os.truncate(folder / "state.safetensors", 0),
    "position cut": lambda folder: os.truncate(folder / "checkpoint.json", 40),
    "position gone": lambda folder: (folder / "checkpoint.json").unlink(),
    # Such as the epoch number: still valid JSON, but with another value.
    "position flipped": lambda folder: flip(folder / "checkpoint.json", (folder / "checkpoint.json").read_bytes().index(b"3")),  # noqa: E501
}  # fmt: skip


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_newest_checkpoint_is_skipped_and_reported(
    how: str, run: Fit, cut_copy: Path, whole: list[EpochReport], caplog: pytest.LogCaptureFixture
) -> None:
    DAMAGE[how](cut_copy / "epoch-00003")
    resumed = list(run(cut_copy))
    assert figures(resumed) == figures(whole[2:])
    assert resumed[0].notes == "damaged checkpoint epoch-00003 skipped, resumed from epoch 2"
    assert resumed[1].notes == ""
    assert "skipping checkpoint" in caplog.text
    assert "epoch-00003: " in caplog.text
    assert same_weights(resumed[-1], whole[-1])


def test_a_training_with_only_damaged_checkpoints_does_not_start_over(run: Fit, cut_copy: Path) -> None:
    kept = sorted(cut_copy.glob("epoch-*"))
    for folder in kept:
        (folder / "checkpoint.json").write_text("{")
    with pytest.raises(TrainingError, match="every checkpoint is damaged") as caught:
        next(run(cut_copy))
    assert "epoch-00003" in caught.value.fields["found"]
    assert "start from the beginning" in caught.value.fields["do"]
    assert sorted(cut_copy.glob("epoch-*")) == kept


def test_reports_unknown_to_the_caller_are_yielded_again(run: Fit, cut_copy: Path, whole: list[EpochReport]) -> None:
    again = list(run(cut_copy, known_epoch=1))
    assert figures(again) == figures(whole[1:])
    assert figures(list(run(cut_copy, known_epoch=4))) == []
    assert figures(list(run(cut_copy, known_epoch=0))) == figures(whole)


def test_a_nan_loss_restarts_the_epoch_at_a_lower_rate(run: Fit, tmp_path: Path, whole: list[EpochReport]) -> None:
    arm("training.loss:5=nan")
    reports = list(run(tmp_path / "once"))
    assert [report.epoch for report in reports] == [1, 2, 3, 4]
    assert [report.retries for report in reports] == [0, 1, 1, 1]
    assert figures(reports[:1]) == figures(whole[:1])
    assert [report.lr for report in reports[1:]] == pytest.approx([0.3 * report.lr for report in whole[1:]])
    assert "step 4: epoch restarted at 0.3 of the learning rate" in reports[1].notes
    assert reports[2].notes == ""
    arm("training.loss:5=nan")
    assert figures(list(run(tmp_path / "again"))) == figures(reports)


def test_the_lower_rate_holds_after_a_resume(run: Fit, tmp_path: Path) -> None:
    arm("training.loss:2=nan")
    through = list(run(tmp_path / "through"))
    arm("training.loss:2=nan")
    parts = run(tmp_path / "parts")
    cut_copy = list(islice(parts, 2))
    parts.close()  # type: ignore[attr-defined]
    assert figures(cut_copy + list(run(tmp_path / "parts"))) == figures(through)


def test_retries_are_limited(run: Fit, tmp_path: Path) -> None:
    arm(",".join(f"training.loss:{count}=nan" for count in (4, 5, 6)))
    reports = run(tmp_path, nan_retries=2)
    assert next(reports).epoch == 1
    with pytest.raises(TrainingError, match="not finite") as caught:
        next(reports)
    assert "step 3, after 2 retries" in caught.value.fields["where"]
    assert Checkpoint.load(tmp_path / "epoch-00001").meta["epoch"] == 1


def test_a_full_disk_keeps_the_last_checkpoint(run: Fit, tmp_path: Path, whole: list[EpochReport]) -> None:
    arm("checkpoint.write:2=enospc")
    reports = run(tmp_path)
    assert [next(reports).epoch, next(reports).epoch] == [1, 2]
    with pytest.raises(ResourceError, match="disk is full") as caught:
        next(reports)
    assert caught.value.exit_code == 1
    assert caught.value.fields["found"] == "the newest checkpoint is epoch 1"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".writer.json", "epoch-00001"]
    assert figures(list(run(tmp_path, known_epoch=2))) == figures(whole[1:])


def test_a_full_disk_in_the_last_epoch_is_an_error(run: Fit, tmp_path: Path) -> None:
    arm("checkpoint.write:4=enospc")
    reports = run(tmp_path)
    assert [report.epoch for report in islice(reports, 3)] == [1, 2, 3]
    with pytest.raises(ResourceError, match="disk is full"):
        next(reports)


def test_a_full_disk_is_raised_when_the_training_is_closed(run: Fit, tmp_path: Path) -> None:
    arm("checkpoint.write=enospc")
    reports = run(tmp_path)
    assert next(reports).epoch == 1
    with pytest.raises(ResourceError, match="disk is full") as caught:
        reports.close()  # type: ignore[attr-defined]
    assert caught.value.fields["found"] == "no checkpoint yet"


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot mount a small file system: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_training_resumes_after_a_file_system_was_full(run: Fit, tiny_disk: Path, whole: list[EpochReport]) -> None:
    size = sum(file.stat().st_size for file in Path(whole[-1].checkpoint).iterdir())
    reserve = tiny_disk / "reserve"
    # Leave space for one and a half checkpoints.
    reserve.write_bytes(b"\1" * (shutil.disk_usage(tiny_disk).free - 3 * size // 2))
    reports = run(tiny_disk / "run")
    with pytest.raises(ResourceError, match="disk is full"):
        list(reports)
    assert sorted(path.name for path in (tiny_disk / "run").iterdir()) == [".writer.json", "epoch-00001"]
    reserve.unlink()
    assert figures(list(run(tiny_disk / "run"))) == figures(whole[1:])


def test_an_unwritable_folder_is_refused_at_once(run: Fit, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nowhere")):
        with pytest.raises(InputError, match="cannot write checkpoints here") as caught:
            next(run(folder))
        assert caught.value.exit_code == 2


@pytest.mark.parametrize("point", ["training.before_step:5", "checkpoint.write:2"])
def test_out_of_memory_names_the_settings_to_change(point: str, run: Fit, tmp_path: Path) -> None:
    arm(f"{point}=memory")
    with pytest.raises(ResourceError, match="out of memory") as caught:
        list(run(tmp_path))
    assert caught.value.fields["found"] == "training.batch_size=2, training.patch_ijk=[16, 16, 16]"
    assert "training.batch_size" in caught.value.fields["do"]
    assert len(str(caught.value).splitlines()) <= 5


def test_an_allocation_that_fails_is_a_resource_error(
    config: Config,
    train: list[CachedCase],
    selection: list[CachedCase],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Weights of more than a terabyte, which the system refuses at once, with the memory check switched off."""
    monkeypatch.setattr(import_module("gtvray.training.fit"), "check_memory", lambda *_: None)
    network = config.network.model_copy(update={"features": (4, 8, 120_000)})
    with pytest.raises(ResourceError, match="out of memory on this machine"):
        next(fit(config.model_copy(update={"network": network}), train, selection, tmp_path))
