"""Checkpoints and bundles on disk: reading returns what was written, or raises."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gtvray.config import InferenceConfig, NetworkConfig, PreprocessingConfig
from gtvray.errors import BundleError, TrainingError
from gtvray.models import Bundle, Checkpoint, build_network, verify_digest, weights_of, write_bundle
from gtvray.models.checkpoint import flatten_optimizer, restore_optimizer

from ..namespaces import as_nameless_user

SETTINGS: dict[str, Any] = {
    "preprocessing": PreprocessingConfig(spacing_mm=(4.0, 4.0, 4.0)),
    "network": NetworkConfig(features=(4, 4, 8)),
    "inference": InferenceConfig(threshold=0.3),
    "patch_ijk": (16, 16, 16),
    "info": {"cases": 3},
}
FILES = ["weights-0.safetensors", "bundle.json", "manifest.json"]


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return build_network(SETTINGS["network"], 1, (4.0, 4.0, 4.0), (16, 16, 16)).eval()


@pytest.fixture
def bundle(tmp_path: Path, network: torch.nn.Module) -> Bundle:
    return write_bundle(tmp_path / "bundle", weights=weights_of(network), **SETTINGS)


def _flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_loaded_bundle_equals_the_written_model(bundle: Bundle, network: torch.nn.Module) -> None:
    loaded = Bundle.load(bundle.folder)
    assert loaded == bundle
    for name in ("preprocessing", "network", "inference", "patch_ijk"):
        assert getattr(loaded, name) == SETTINGS[name]
    assert loaded.labels == {"GTV": 1}
    assert loaded.info["cases"] == 3
    patch = torch.rand(1, 1, 16, 16, 16)
    rebuilt = loaded.build_network()
    assert not rebuilt.training
    with torch.no_grad():
        assert torch.equal(rebuilt(patch), network(patch))
    assert sorted(file.name for file in bundle.folder.iterdir()) == sorted(FILES)
    assert "not a medical device" in (bundle.folder / "bundle.json").read_text().lower()


def test_digest_depends_on_the_content_only(tmp_path: Path, bundle: Bundle, network: torch.nn.Module) -> None:
    again = write_bundle(tmp_path / "again", weights=dict(reversed(weights_of(network).items())), **SETTINGS)
    moved = shutil.copytree(bundle.folder, tmp_path / "moved")
    assert again.digest == bundle.digest == verify_digest(moved) == verify_digest(bundle.folder)
    other = write_bundle(tmp_path / "other", weights=weights_of(network), **{**SETTINGS, "info": {"cases": 4}})
    assert other.digest != bundle.digest
    changed = {name: tensor + (name == next(iter(weights_of(network)))) for name, tensor in weights_of(network).items()}
    assert write_bundle(tmp_path / "w", weights=changed, **SETTINGS).digest != bundle.digest


@pytest.mark.parametrize("name", FILES)
def test_changed_byte_is_detected(bundle: Bundle, name: str) -> None:
    path = bundle.folder / name
    content = path.read_bytes()
    for at in {*range(0, len(content), max(1, len(content) // 60)), len(content) - 2}:
        _flip(path, at)
        with pytest.raises(BundleError):
            Bundle.load(bundle.folder)
        path.write_bytes(content)
    path.write_bytes(content[:-1] if name != "manifest.json" else content[:-3])
    with pytest.raises(BundleError):
        Bundle.load(bundle.folder)


@pytest.mark.parametrize(
    "damage",
    [
        *[lambda folder, name=name: (folder / name).unlink() for name in FILES],
        lambda folder: (folder / "extra.txt").touch(),
        lambda folder: (folder / "extra").mkdir(),
        lambda folder: (folder / "manifest.json").write_text("[]"),
        lambda folder: (folder / "manifest.json").write_text('{"files": []}'),
        lambda folder: (folder / "manifest.json").write_text('{"files": {}}'),
        lambda folder: (folder / "manifest.json").write_text('{"files": {"../../etc": 1}}'),
        lambda folder: (folder / "manifest.json").write_text('{"files": {"bundle.json": null}}'),
        shutil.rmtree,
    ],
)
def test_incomplete_bundle_is_rejected(bundle: Bundle, damage: Callable[[Path], Any]) -> None:
    damage(bundle.folder)
    with pytest.raises(BundleError):
        Bundle.load(bundle.folder)


def test_a_bundle_can_be_read_by_the_user_who_serves_it(bundle: Bundle) -> None:
    assert {path.stat().st_mode & 0o777 for path in bundle.folder.iterdir()} == {0o644}
    code = "import pathlib, sys; from gtvray.models import verify_digest; from gtvray.errors import InputError\n"
    code += "try: verify_digest(pathlib.Path(sys.argv[1]))\nexcept InputError as error: print(error)"
    (bundle.folder / "weights-0.safetensors").chmod(0o000)
    command = [*as_nameless_user(), sys.executable, "-c", code, str(bundle.folder)]
    result = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "cannot be read" in result
    assert f"chmod -R a+rX {bundle.folder}" in result


def test_weights_of_another_network_are_rejected(tmp_path: Path, network: torch.nn.Module) -> None:
    other = {**SETTINGS, "network": NetworkConfig(features=(4, 8, 8))}
    with pytest.raises(BundleError, match="do not fit"):
        write_bundle(tmp_path / "b", weights=weights_of(network), **other).build_network()


def _trained() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    _steps(model, optimizer, 0, 3)
    return model, optimizer


def _steps(model: torch.nn.Module, optimizer: torch.optim.Optimizer, start: int, stop: int) -> torch.Tensor:
    for step in range(start, stop):
        optimizer.zero_grad()
        loss = model(torch.full((2, 3), float(step))).square().mean()
        loss.backward()
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_training_resumed_from_a_checkpoint_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    model, optimizer = _trained()
    tensors = {**{f"w/{n}": t for n, t in weights_of(model).items()},
               **{f"o/{n}": t for n, t in flatten_optimizer(optimizer).items()}}  # fmt: skip
    Checkpoint(tensors, {"epoch": 3, "history": [0.5, None]}).save(tmp_path / "c")
    expected = _steps(model, optimizer, 3, 6)
    loaded = Checkpoint.load(tmp_path / "c")
    assert loaded.meta == {"epoch": 3, "history": [0.5, None]}
    assert set(loaded.tensors) == set(tensors)
    other = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1))
    fresh = torch.optim.AdamW(other.parameters(), lr=0.1)
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            parameter.copy_(loaded.tensors[f"w/{name}"])
    restore_optimizer(fresh, {n[2:]: t for n, t in loaded.tensors.items() if n.startswith("o/")})
    assert torch.equal(_steps(other, fresh, 3, 6), expected)


@pytest.mark.parametrize(
    "damage",
    [
        *[lambda folder, at=at: _flip(folder / "state.safetensors", at) for at in (0, 9, 60, -1)],
        lambda folder: (folder / "state.safetensors").unlink(),
        lambda folder: (folder / "state.safetensors").write_bytes(b""),
        lambda folder: (folder / "checkpoint.json").unlink(),
        lambda folder: (folder / "checkpoint.json").write_text('{"epoch": 3'),
        lambda folder: (folder / "checkpoint.json").write_text("[]"),
        lambda folder: (folder / "checkpoint.json").write_text(json.dumps({"epoch": 3})),
        shutil.rmtree,
    ],
)
def test_damaged_checkpoint_is_rejected(tmp_path: Path, damage: Callable[[Path], Any]) -> None:
    Checkpoint({"w": torch.arange(6.0)}, {"epoch": 3}).save(tmp_path / "c")
    damage(tmp_path / "c")
    with pytest.raises(TrainingError) as caught:
        Checkpoint.load(tmp_path / "c")
    assert caught.value.fields["where"] == str(tmp_path / "c")


def test_checkpoints_and_bundles_contain_no_pickle(bundle: Bundle, tmp_path: Path) -> None:
    Checkpoint({"w": torch.arange(6.0)}, {"epoch": 3}).save(tmp_path / "c")
    for file in [*bundle.folder.iterdir(), *(tmp_path / "c").iterdir()]:
        assert file.suffix in (".safetensors", ".json")


def test_locator_is_a_bundle_inside_the_bundle(tmp_path: Path, bundle: Bundle, network: torch.nn.Module) -> None:
    settings = {**SETTINGS, "locator": bundle}
    both = write_bundle(tmp_path / "both", weights=weights_of(network), **settings)
    assert both.locator is not None
    assert both.locator.digest == bundle.digest
    assert both.digest != bundle.digest
    # A locator of the locator is omitted, since it is never used.
    deeper = write_bundle(tmp_path / "deeper", weights=weights_of(network), **{**SETTINGS, "locator": both})
    assert deeper.locator is not None
    assert deeper.locator.locator is None
    for damage in (
        lambda folder: _flip(folder / "locator" / "weights-0.safetensors", 200),
        lambda folder: (folder / "locator" / "bundle.json").unlink(),
        lambda folder: shutil.rmtree(folder / "locator"),
    ):
        shutil.copytree(both.folder, tmp_path / "copy", dirs_exist_ok=True)
        damage(tmp_path / "copy")
        with pytest.raises(BundleError):
            Bundle.load(tmp_path / "copy")
