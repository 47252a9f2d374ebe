"""A sweep file is validated against the schema before anything starts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from gtvray.config import Choice, Range, load_sweep
from gtvray.errors import ConfigError, NotFoundError

LR = {"low": 1e-4, "high": 1e-2, "log": True}
KIND = {"choice": ["unet", "residual_unet"]}
DROPOUT = {"low": 0.0, "high": 0.5, "when": {"network.kind": "residual_unet"}}


def _load(tmp_path: Path, **content: Any) -> Any:
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return load_sweep(path)


def test_valid_sweep_is_loaded(tmp_path: Path) -> None:
    space = {
        "optimizer.lr": LR,
        "network.size": {"choice": ["tiny", "small"]},
        "training.patch_ijk": {"choice": [[32] * 3]},
    }
    start = [{"optimizer.lr": 1e-3, "network.size": "small"}, {"optimizer.lr": 1e-4}]
    sweep = _load(tmp_path, trials=8, base={"training.epochs": 3}, space=space, start=start)
    assert isinstance(sweep.space["optimizer.lr"], Range)
    assert isinstance(sweep.space["network.size"], Choice)
    assert (sweep.trials, sweep.base) == (8, {"training.epochs": 3})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"space": {}}, "space"),
        ({}, "space"),
        ({"space": {"optimizer.lr": {"low": 1e-2, "high": 1e-2}}}, "empty range"),
        ({"space": {"optimizer.lr": {"low": 1e-2, "high": 1e-4}}}, "empty range"),
        ({"space": {"optimizer.lr": {"low": 0, "high": 1e-2, "log": True}}}, "log range"),
        ({"space": {"training.epochs": {"low": 1.2, "high": 1.8, "integer": True}}}, "integer bounds"),
        ({"space": {"network.size": {"choice": []}}}, "network.size"),
        ({"space": {"network.size": {"choice": ["tiny", "huge"]}}}, "network.size"),
        ({"space": {"optimizer.lr": {"low": 0.1, "high": 2}}}, "optimizer.lr"),
        ({"space": {"optimizer.rl": LR}}, "optimizer.rl"),
        ({"space": {"optimizer.lr": LR}, "base": {"training.epoch": 3}}, "training.epoch"),
        ({"space": {"optimizer.lr": LR}, "base": {"training.epochs": 0}}, "training.epochs"),
        ({"space": {"optimizer.lr": LR}, "base": {"optimizer.lr": 1e-3}}, "both fixed and searched"),
        ({"space": {"optimizer.lr": LR}, "start": [{"training.epochs": 3}]}, "training.epochs"),
        ({"space": {"optimizer.lr": LR}, "start": [{"optimizer.lr": 0.5}]}, "optimizer.lr"),
        ({"space": {"network.size": {"choice": ["tiny"]}}, "start": [{"network.size": "base"}]}, "network.size"),
        ({"space": {"optimizer.lr": LR}, "trials": 0}, "trials"),
        ({"space": {"optimizer.lr": LR}, "searcher": "best"}, "searcher"),
        ({"space": {"optimizer.lr": {**LR, "step": 1e-4}}}, "a log range has no step"),
        ({"space": {"training.batch_size": {"low": 1, "high": 4, "step": 0.5, "integer": True}}}, "an integer step"),
        ({"space": {"network.size": {"choice": ["tiny", "tiny"]}}}, "must differ"),
        ({"space": {"training.selection_cases": {"choice": [4, 8]}}}, "how trials are compared"),
        ({"space": {"inference.threshold": {"low": 0.3, "high": 0.6}}}, "how trials are compared"),
        ({"space": {"training.epochs": {"choice": [4, 8]}}}, "under base"),
        ({"space": {"network.dropout": {"low": 0, "high": 1, "when": {"network.sort": "unet"}}}}, "network.sort"),
        ({"space": {"network.dropout": DROPOUT, "network.kind": KIND}}, "must come before it"),
        ({"space": {"network.kind": {"choice": ["unet"]}, "network.dropout": DROPOUT}}, "never applies"),
        ({"space": {"network.kind": KIND, "network.dropout": DROPOUT},
          "start": [{"network.kind": "unet", "network.dropout": 0.1}]}, "does not apply"),
        ({"space": {"optimizer.lr": {**LR, "logg": True}}}, "optimizer.lr"),
    ],
)  # fmt: skip
def test_faults_of_a_sweep_are_named(tmp_path: Path, content: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        _load(tmp_path, **content)
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 5


@pytest.mark.parametrize("entry", [{"low": 0.1}, {"choice": 3}, 3, {"low": "a", "high": 2}, {"choices": [1]}])
def test_an_invalid_entry_of_the_space_is_named_in_plain_words(tmp_path: Path, entry: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        _load(tmp_path, space={"optimizer.lr": entry})
    assert "space.optimizer.lr" in str(caught.value)
    assert "function-" not in str(caught.value)
    assert "-entry" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("training.micro_batch", "x"),
        ("network.features", [1, 2]),
        ("network.kernels", [[3, 3]]),
        ("network.blocks", "x"),
    ],
)
def test_an_invalid_value_is_named_by_its_key_alone(tmp_path: Path, key: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        _load(tmp_path, base={key: value}, space={"optimizer.lr": LR})
    assert re.match(rf"invalid setting: {re.escape(key)}(\.\d+)*( \(and \d+ more\))?\n", str(caught.value))


def test_base_may_be_nested(tmp_path: Path) -> None:
    sweep = _load(
        tmp_path, base={"training": {"epochs": 3, "batch_size": 4}, "network.size": "tiny"}, space={"optimizer.lr": LR}
    )
    assert sweep.base == {"training.epochs": 3, "training.batch_size": 4, "network.size": "tiny"}


def test_no_such_sweep(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        load_sweep(tmp_path / "none.yaml")


SHIPPED = sorted((Path(__file__).resolve().parents[2] / "tune_configs").glob("*.yaml"))


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_shipped_sweeps_are_valid_and_say_what_they_cost(file: Path) -> None:
    assert load_sweep(file).trials >= 3
    first = file.read_text().partition("trials:")[0]
    assert all(line.startswith("#") for line in first.splitlines())
    assert [word for word in ("Purpose:", "Cost:", "Hardware:") if word not in first] == []
    assert len(SHIPPED) >= 8
