"""The configuration schema: files and overrides give equal settings, and errors suggest the nearest valid key."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gtvray.config import (
    Config,
    LossConfig,
    NetworkConfig,
    Section,
    SweepConfig,
    build,
    check_key,
    flatten,
    is_setting,
    known_keys,
    load_config,
    with_dotted,
)
from gtvray.errors import ConfigError, NotFoundError

# Values below the minimum or above the maximum of bounded fields, and of other types.
OUT_OF_RANGE = [
    ("split.selection_share", 0), ("split.held_out_share", 1), ("split.held_out_share", 0.7), ("split.seed", -1),
    ("cache.codec_level", 10), ("preprocessing.spacing_mm", [0.2, 3, 3]), ("preprocessing.spacing_mm", [3, 3]),
    ("preprocessing.windows_hu", []), ("preprocessing.windows_hu", [[300, -200]]),
    ("preprocessing.windows_hu", [[-200, 300], [5, 5]]), ("augmentation.rotate", 1.01), ("network.kind", "vnet"),
    ("network.features", []), ("network.features", [16, 0, 32]), ("network.dropout", 1), ("loss.kind", "ce"),
    ("optimizer.lr", 0), ("optimizer.lr", "fast"), ("training.patch_ijk", [4, 32, 32]), ("training.epochs", 1.5),
    ("training.batch_size", 0), ("training.use_gpu", "perhaps"), ("inference.overlap", 0.9),
    ("inference.threshold", 0), ("tracking.model_name", "a/b"), ("promotion.min_cases", 2), ("serving.port", 70000),
    # NaN and infinity, which bounds alone may accept.
    ("optimizer.lr", float("nan")), ("preprocessing.body_threshold_hu", float("nan")),
    ("preprocessing.windows_hu", [[float("nan"), 300]]), ("serving.timeout_s", float("inf")),
]  # fmt: skip


def test_flatten_and_known_keys_agree() -> None:
    flat = flatten(Config())
    assert list(flat) == known_keys()
    assert with_dotted(Config(), flat) == Config()


# Sections of other packages describe foreign files; which of them are loaded depends on the other tests.
SECTIONS = [each for each in Section.__subclasses__() if each.__module__.startswith("gtvray.config.")]


@pytest.mark.parametrize("section", [Config, *SECTIONS])
def test_every_section_is_frozen_closed_and_described(section: type[Section]) -> None:
    assert section.model_config["frozen"]
    assert section.model_config["extra"] == "forbid"
    values = {n: f for n, f in section.model_fields.items() if not _is_section(f.annotation)}
    undescribed = [name for name, field in values.items() if not field.description]
    assert undescribed == [] or section.__name__ in ("Range", "Choice")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("optimizer.learning_rat", "optimizer."),
        ("optimiser.lr", "optimizer.lr"),
        ("lr", "optimizer.lr"),
        ("training.epoch", "training.epochs"),
        ("inference.treshold", "inference.threshold"),
    ],
)
def test_unknown_key_is_refused_with_the_nearest(tmp_path: Path, written: str, meant: str) -> None:
    section, _, leaf = written.rpartition(".")
    path = tmp_path / "cfg.yaml"
    path.write_text(f"{section}:\n  {leaf}: 1\n" if section else f"{leaf}: 1\n")
    for attempt in (lambda: load_config(None, [f"{written}=1"]), lambda: load_config(path)):
        with pytest.raises(ConfigError, match="unknown setting") as caught:
            attempt()
        assert f"did you mean {meant}" in caught.value.fields["do"] or section == "optimiser"
        assert len(str(caught.value).splitlines()) <= 5


def test_unrecognisable_key_refers_to_the_schema() -> None:
    with pytest.raises(ConfigError) as caught:
        check_key("zzzzqqq", "here")
    assert "config schema" in caught.value.fields["do"]


@pytest.mark.parametrize(
    "text",
    [
        "optimizer.lr: 0.1\noptimizer.kind: sgd\n",
        "optimizer: {lr: 0.1, kind: sgd}\n",
        "optimizer: {lr: 0.1}\noptimizer.kind: sgd\n",
        "optimizer.kind: sgd\noptimizer: {lr: 0.1}\n",
    ],
)
def test_nested_and_dotted_keys_mean_the_same(tmp_path: Path, text: str) -> None:
    path = tmp_path / "cfg.yaml"
    path.write_text(text)
    config = load_config(path)
    assert (config.optimizer.lr, config.optimizer.kind) == (0.1, "sgd")


@pytest.mark.parametrize(
    "text", ["optimizer.lr: 0.1\noptimizer: {lr: 0.2}\n", "optimizer: 3\noptimizer.lr: 0.1\n", "a.b: 1\na: 2\n"]
)
def test_a_key_that_is_set_twice_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "cfg.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="set twice"):
        load_config(path)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("optimizer.lr=3e-4", True), ("optimiser.lr=1", True), ("preprocessing.spacing_mm=[1, 1, 3]", True),
        ("scan.nii.gz", False), ("./optimizer.lr=3", False), ("a/optimizer.lr=3", False), ("patient.7=x.nii", False),
        ("optimizer=3", False), ("optimizer.lr", False), ("-s", False), ("data.nii=1", False),
    ],
)  # fmt: skip
def test_only_a_known_section_makes_a_word_a_setting(word: str, expected: bool) -> None:
    assert is_setting(word) is expected


def test_a_file_whose_name_resembles_a_setting_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("optimiser.lr=1").touch()
    assert not is_setting("optimiser.lr=1")


def test_a_key_of_a_sweep_is_suggested_from_the_sweep() -> None:
    with pytest.raises(ConfigError) as caught:
        build(SweepConfig, {"trails": 3, "space": {"optimizer.lr": {"low": 1e-4, "high": 1e-2}}}, "sweep.yaml")
    assert caught.value.fields["do"] == "did you mean trials?"


@pytest.mark.parametrize(("key", "value"), OUT_OF_RANGE)
def test_a_value_out_of_range_or_of_another_type_is_refused(key: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        with_dotted(Config(), {key: value}, "cfg.yaml")
    assert key.split(".", maxsplit=1)[0] in caught.value.what
    assert caught.value.fields["where"] == "cfg.yaml"
    assert len(str(caught.value).splitlines()) <= 5


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("optimizer.lr=3e-4", 3e-4), ("optimizer.lr=3.0e-4", 3e-4), ("optimizer.lr=0.25", 0.25),
        ("training.epochs=7", 7), ("training.epochs=7.0", 7), ("training.use_gpu=true", True),
        ("preprocessing.spacing_mm=[1, 1.5, 2]", [1.0, 1.5, 2.0]), ("network.features=null", None),
        ("preprocessing.windows_hu=[[-1e3, 1e3], [0, 80]]", [[-1000.0, 1000.0], [0.0, 80.0]]),
        ("tracking.experiment=a=b", "a=b"), ("tracking.experiment='3e-4'", "3e-4"), ("network.kind=residual_unet",) * 2,
    ],
)  # fmt: skip
def test_settings_are_parsed_as_intended(text: str, value: Any) -> None:
    value = value.partition("=")[2] if value == text else value
    assert flatten(load_config(None, [text]))[text.partition("=")[0]] == value


@given(st.floats(1e-12, 1.0, exclude_min=True))
def test_any_number_python_prints_is_read_back(lr: float) -> None:
    assert load_config(None, [f"optimizer.lr={lr!r}"]).optimizer.lr == lr


def test_a_file_then_overrides_and_the_last_one_wins(tmp_path: Path) -> None:
    path = tmp_path / "cfg.yaml"
    path.write_text("optimizer:\n  lr: 0.1\n  weight_decay: 0.2\n")
    config = load_config(path, ["optimizer.lr=0.3", "optimizer.lr=0.4", "training.epochs=2"])
    assert (config.optimizer.lr, config.optimizer.weight_decay, config.training.epochs) == (0.4, 0.2, 2)


@pytest.mark.parametrize("override", ["optimizer.lr", "optimizer.lr 3", "optimizer=3", "optimizer.lr=[", "=3", ""])
def test_malformed_setting_is_refused(override: str) -> None:
    with pytest.raises(ConfigError):
        load_config(None, [override])


@pytest.mark.parametrize("text", ["optimizer:\n", "optimizer: 3\n", "optimizer: [1]\n"])
def test_setting_below_a_value_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "cfg.yaml"
    path.write_text(text)
    for overrides in ([], ["optimizer.lr=0.1"]):
        with pytest.raises(ConfigError, match="optimizer"):
            load_config(path, overrides)


@pytest.mark.parametrize("content", [b"- a\n", b"text", b"a: [", b"\xff\xfe\x00", b"", b"1: 2\n"])
def test_file_without_a_mapping_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "cfg.yaml").write_bytes(content)
    with pytest.raises(ConfigError):
        load_config(tmp_path / "cfg.yaml")


def test_missing_file_is_reported(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(NotFoundError):
            load_config(path)


@pytest.mark.parametrize("kind", get_args(NetworkConfig.model_fields["kind"].annotation))
@pytest.mark.parametrize("size", get_args(NetworkConfig.model_fields["size"].annotation))
def test_every_network_choice_has_a_builder(kind: Any, size: Any) -> None:
    import torch

    from gtvray.models import build_network

    with torch.device("meta"):
        network = build_network(NetworkConfig(kind=kind, size=size), 2, (3.0, 3.0, 3.0), (32, 32, 32))
        assert network.eval()(torch.empty(1, 2, 32, 32, 32)).shape == (1, 1, 32, 32, 32)


@pytest.mark.parametrize("kind", get_args(LossConfig.model_fields["kind"].annotation))
def test_every_loss_choice_has_a_builder(kind: Any) -> None:
    import torch

    from gtvray.models import build_loss

    logits = torch.zeros(2, 1, 4, 4, 4, requires_grad=True)
    loss = build_loss(LossConfig(kind=kind))(logits, torch.ones(2, 1, 4, 4, 4))
    loss.backward()
    assert loss.ndim == 0
    assert logits.grad is not None
    # Every voxel is tumour and none is marked: each step goes down by raising a logit.
    assert bool((logits.grad <= 0).all())
    assert bool((logits.grad < 0).any())


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Section)
