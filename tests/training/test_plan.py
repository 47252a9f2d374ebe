"""Settings and cases that are refused before training starts."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from gtvray.config import Config, with_dotted
from gtvray.data import CachedCase
from gtvray.errors import ConfigError, DataError
from gtvray.training import check_plan, fit, training_precision
from gtvray.training.execution import micro_batch_size


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"training.batch_size": 3, "training.num_workers": 2}, "training.num_workers"),
        ({"training.patch_ijk": [8, 8, 8]}, "training.patch_ijk"),
        ({"training.patch_ijk": [256, 256, 256], "network.features": [1, 1, 1]}, "training.patch_ijk"),
        ({"training.precision": "fp16"}, "training.use_gpu"),
        ({"training.compile": "graphs"}, "training.use_gpu"),
        ({"inference.precision": "fp16"}, "training.use_gpu"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    config: Config, train: list[CachedCase], selection: list[CachedCase], changes: dict[str, Any], named: str
) -> None:
    check_plan(config, train, selection)
    with pytest.raises(ConfigError) as caught:
        check_plan(with_dotted(config, changes), train, selection)
    assert named in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 5


def test_missing_or_shared_cases_are_refused(config: Config, train: list[CachedCase]) -> None:
    for sides in ((train, []), ([], train), (train, train[-1:])):
        with pytest.raises(DataError):
            check_plan(config, *sides)


def test_more_workers_than_training_cases_are_refused(
    config: Config, train: list[CachedCase], selection: list[CachedCase]
) -> None:
    many = with_dotted(config, {"training.num_workers": 5, "training.batch_size": 5})
    with pytest.raises(DataError, match="more workers than training cases"):
        check_plan(many, train, selection)


def test_a_fold_without_tumour_is_refused(config: Config, train: list[CachedCase], selection: list[CachedCase]) -> None:
    empty = [replace(case, meta={**case.meta, "tumour_ml": 0.0}) for case in train]
    check_plan(config, [*empty[1:], train[0]], selection)
    with pytest.raises(DataError, match="no training case has a tumour") as caught:
        check_plan(config, empty, selection)
    assert caught.value.fields["found"] == f"{len(train)} cases with empty masks"


def test_a_training_larger_than_memory_is_refused(
    config: Config,
    train: list[CachedCase],
    selection: list[CachedCase],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(import_module("gtvray.training.fit"), "device_bytes", lambda _: 10**8)
    with pytest.raises(ConfigError, match="does not fit into memory"):
        next(iter(fit(config, train, selection, tmp_path)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "patches"),
    [({}, 1), ({"training.use_gpu": True}, 4), ({"training.micro_batch": 3}, 3), ({"training.micro_batch": 9}, 4)],
)
def test_micro_batches(config: Config, changes: dict[str, Any], patches: int) -> None:
    assert micro_batch_size(with_dotted(config, {"training.batch_size": 4, **changes})) == patches


@pytest.mark.parametrize(
    ("asked", "given"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_precision_follows_the_settings(config: Config, asked: str, given: torch.dtype) -> None:
    assert training_precision(with_dotted(config, {"training.precision": asked})) is given


@pytest.mark.parametrize("native", [True, False])
def test_auto_precision_follows_the_hardware(config: Config, monkeypatch: pytest.MonkeyPatch, native: bool) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": native})
    expected = torch.bfloat16 if native else torch.float32
    assert training_precision(with_dotted(config, {"training.precision": "auto"})) is expected
