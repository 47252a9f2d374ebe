"""Bundles: ensembles, versions, and a stored bundle of an earlier version."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import expit, logit

from gtvray.config import InferenceConfig, NetworkConfig, PreprocessingConfig
from gtvray.errors import BundleError
from gtvray.evaluation import dice
from gtvray.geometry import Volume
from gtvray.inference import Predictor, run_patches
from gtvray.io import read_json, read_volume, sha256_of, write_json
from gtvray.models import Bundle, build_network, verify_digest, weights_of, write_bundle

GOLDEN = Path(__file__).parent / "golden"
GOLDEN_DIGEST = "b8d832d0cb575f1a01e611ce97d0b37d8acba288c26122bfbc8b8099eee52752"
PATCH_IJK = (16, 16, 16)
SETTINGS: dict[str, Any] = {
    "preprocessing": PreprocessingConfig(spacing_mm=(4.0, 4.0, 4.0)),
    "network": NetworkConfig(features=(4, 4, 8)),
    "inference": InferenceConfig(batch_size=2),
    "patch_ijk": PATCH_IJK,
    "info": {},
}


def _weights(seed: int, features: tuple[int, ...] = (4, 4, 8)) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return weights_of(build_network(NetworkConfig(features=features), 1, (4.0, 4.0, 4.0), PATCH_IJK))


def _scan() -> Volume:
    """A ball of waves, computed rather than random: the same on every machine."""
    i, j, k = np.ogrid[-1:1:40j, -1:1:44j, -1:1:36j]
    hu = np.where(i**2 + j**2 + k**2 < 0.8, 40 + 120 * np.sin(9 * i) * np.cos(7 * j + 2 * k), -1000)
    return Volume(hu.astype(np.int16), np.diag([-4.0, -4, 4, 1]))


def _probability(bundle: Bundle) -> np.ndarray:
    predictor = Predictor(bundle, threads=1)
    request = predictor.begin(_scan())
    run_patches(request, predictor.forward, predictor.batch_size)
    return request.probability()


@pytest.fixture
def three(tmp_path: Path) -> Bundle:
    return write_bundle(tmp_path / "three", weights=[_weights(seed) for seed in range(3)], **SETTINGS)


def test_ensemble_logits_are_the_mean_of_its_members(tmp_path: Path, three: Bundle) -> None:
    assert three.members == Bundle.load(three.folder).members == 3
    alone = [write_bundle(tmp_path / f"{n}", weights=_weights(n), **SETTINGS) for n in range(3)]
    assert [bundle.members for bundle in alone] == [1, 1, 1]
    patch = np.random.default_rng(0).random((1, *PATCH_IJK), dtype=np.float32)
    logits = [Predictor(bundle, threads=1).forward([patch]) for bundle in alone]
    expected = (logits[0] + logits[1] + logits[2]) / np.float32(3)
    assert Predictor(three, threads=1).forward([patch]).tobytes() == expected.tobytes()
    # Averaging logits per patch and averaging volumes are equal up to rounding.
    volumes = np.mean([logit(_probability(bundle)) for bundle in alone], axis=0)
    np.testing.assert_allclose(_probability(three), expit(volumes), atol=1e-6)


def test_ensemble_of_equal_members_equals_the_member(tmp_path: Path) -> None:
    one = write_bundle(tmp_path / "one", weights=_weights(0), **SETTINGS)
    thrice = write_bundle(tmp_path / "thrice", weights=[_weights(0)] * 3, **SETTINGS)
    assert one.digest != thrice.digest
    np.testing.assert_allclose(_probability(one), _probability(thrice), atol=1e-6)


def test_members_keep_their_order(three: Bundle) -> None:
    for number in range(3):
        built = three.build_network(number).state_dict()
        assert all(torch.equal(built[name], tensor) for name, tensor in _weights(number).items())
    for number in (-1, 3):
        with pytest.raises(BundleError, match="no such member"):
            three.build_network(number)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([], "at least one"),
        ([_weights(0), _weights(1, (4, 8, 8))], "same network"),
        ([_weights(0), {}], "same network"),
    ],
)
def test_members_of_different_networks_are_rejected(tmp_path: Path, members: Any, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        write_bundle(tmp_path / "odd", weights=members, **SETTINGS)
    assert list(tmp_path.iterdir()) == []


def _forge(folder: Path) -> None:
    """Rewrite the manifest to match the files in the folder."""
    files = {file.name: sha256_of(file) for file in folder.iterdir() if file.name != "manifest.json"}
    write_json(folder / "manifest.json", {"files": files})


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "weights-2.safetensors").unlink(),
        lambda folder: (folder / "weights-1.safetensors").unlink(),
        lambda folder: shutil.copy(folder / "weights-0.safetensors", folder / "weights-3.safetensors"),
        lambda folder: shutil.copy(folder / "weights-0.safetensors", folder / "weights.safetensors"),
        lambda folder: (folder / "weights-0.safetensors").rename(folder / "weights.safetensors"),
    ],
)
def test_missing_or_extra_member_is_detected_even_with_a_matching_manifest(
    three: Bundle, damage: Callable[[Path], Any]
) -> None:
    damage(three.folder)
    with pytest.raises(BundleError):
        verify_digest(three.folder)
    _forge(three.folder)
    with pytest.raises(BundleError):
        Bundle.load(three.folder)


@pytest.mark.parametrize("key", ["schema_version", "preprocessing_version"])
@pytest.mark.parametrize("version", [0, 99])
def test_bundle_of_another_version_is_rejected(three: Bundle, key: str, version: int) -> None:
    path = three.folder / "bundle.json"
    path.write_text(json.dumps({**read_json(path), key: version}))
    _forge(three.folder)
    with pytest.raises(BundleError, match="another version"):
        Bundle.load(three.folder)


def test_golden_bundle_keeps_its_digest_and_mask() -> None:
    """A promoted bundle must keep its masks across releases."""
    bundle = Bundle.load(GOLDEN / "bundle-4")
    assert (bundle.digest, bundle.members) == (GOLDEN_DIGEST, 1)
    predictor = Predictor(bundle, threads=1)
    mask, stored = predictor.predict(_scan()), read_volume(GOLDEN / "bundle-4-mask.nii.gz")
    assert mask.same_grid(stored)
    assert 11_800 < np.count_nonzero(stored.array) < 11_860
    # CPUs differ in the order of sums, and some voxels are within 1e-5 of the threshold.
    assert dice(stored.array > 0, mask.array > 0) > 0.999
