"""Golden cases: parts of scans whose masks a model must reproduce on every host."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gtvray.config import InferenceConfig, NetworkConfig, PreprocessingConfig
from gtvray.datasets import index_dataset, make_phantom
from gtvray.errors import BundleError, NotReproducedError
from gtvray.evaluation import ScoredCase, golden_threads, reproduce, require_reproduced, write_golden
from gtvray.evaluation.interior import LARGEST_RADIUS_MM
from gtvray.geometry import Box, Volume
from gtvray.inference import Predictor
from gtvray.io import read_volume, write_json, write_volume
from gtvray.models import Bundle, build_network, weights_of, write_bundle
from gtvray.preprocessing import AIR_HU

from ..golden_cases import made_golden
from ..scores import made_score

NAMES = ["golden.json", *(f"{kind}-{n}.nii.gz" for kind in ("mask", "scan") for n in range(2))]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Random weights whose masks are not empty."""
    torch.manual_seed(0)
    network, patch_ijk = NetworkConfig(features=(4, 4, 8)), (16, 16, 16)
    built = build_network(network, 1, (6.0, 6.0, 6.0), patch_ijk)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.mul_(1.5)
    return write_bundle(
        tmp_path_factory.mktemp("bundles") / "made",
        weights=weights_of(built),
        preprocessing=PreprocessingConfig(spacing_mm=(6.0, 6.0, 6.0)),
        network=network,
        inference=InferenceConfig(overlap=0.0, keep_largest=True, threshold=0.5),
        patch_ijk=patch_ijk,
        info={},
    )


@pytest.fixture(scope="module")
def golden(bundle: Bundle, phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, scored = tmp_path_factory.mktemp("golden"), []
    predictor = Predictor(bundle, threads=1)
    for case in index_dataset(phantoms).cases[:2]:
        mask = folder / f"{case.case_id}.nii.gz"
        scan = read_volume(case.image)
        cube = np.zeros(scan.shape, np.uint8)
        cube[tuple(slice(n // 2 - 3, n // 2 + 3) for n in scan.shape)] = 1
        write_volume(mask, scan.with_array(cube))
        scored.append(ScoredCase(case, made_score(case.case_id, 0.5), None, mask, 1))
    write_golden(folder / "golden", predictor, scored, threads=1)
    return folder / "golden"


def test_golden_cases_are_reproduced_bit_for_bit_on_the_same_stack(golden: Path, bundle: Bundle) -> None:
    assert sorted(file.name for file in golden.iterdir()) == NAMES
    assert golden_threads(golden) == 1
    results = reproduce(golden, Predictor(bundle, threads=1))
    assert [(result.case, result.dice, result.identical, result.ok) for result in results] == [
        (0, 1.0, True, True),
        (1, 1.0, True, True),
    ]
    assert any(read_volume(golden / f"mask-{n}.nii.gz").array.any() for n in range(2)), "some mask is not empty"


def test_golden_cases_hold_neither_names_nor_skin(golden: Path, phantoms: Path) -> None:
    cases = index_dataset(phantoms).cases[:2]
    text = (golden / "golden.json").read_text()
    assert [case.case_id for case in cases if f'"{case.case_id}"' in text or str(phantoms) in text] == []
    for number in range(2):
        scan = read_volume(golden / f"scan-{number}.nii.gz")
        kept = scan.array > AIR_HU
        radius_mm = max(np.ptp(np.argwhere(kept), axis=0) * scan.spacing_mm) / 2
        assert radius_mm <= LARGEST_RADIUS_MM
        assert not kept[0].any()
        assert not kept[:, 0].any(), "a ball in air, not a part of a head that ends at the border"


def test_golden_cases_of_earlier_versions_are_read(bundle: Bundle, phantoms: Path, tmp_path: Path) -> None:
    """They hold the scan within 50 mm of the mask, and the same golden.json."""
    scan = read_volume(index_dataset(phantoms).cases[0].image)
    folder = made_golden(tmp_path / "golden", bundle, [scan.cropped(Box((20, 20, 10), (60, 70, 40)))])
    assert [result.identical for result in reproduce(folder, Predictor(bundle, threads=1))] == [True]


def test_scans_without_a_storable_interior_give_a_phantom(bundle: Bundle, phantoms: Path, tmp_path: Path) -> None:
    case = index_dataset(phantoms).cases[0]
    scan = read_volume(case.image)
    write_volume(tmp_path / "small.nii.gz", Volume(scan.array, scan.affine * [[0.2, 0.2, 0.2, 1]]))
    small = read_volume(tmp_path / "small.nii.gz")
    write_volume(tmp_path / "mask.nii.gz", small.with_array(np.zeros(small.shape, np.uint8)))
    entry = ScoredCase(replace(case, image=tmp_path / "small.nii.gz"), made_score("1", 0.0), None,
                       tmp_path / "mask.nii.gz", 1)  # fmt: skip
    write_golden(tmp_path / "golden", Predictor(bundle, threads=1), [entry], threads=1)
    stored = read_volume(tmp_path / "golden" / "scan-0.nii.gz")
    np.testing.assert_array_equal(stored.array, make_phantom(0, seed=0)[0].array)
    assert [result.identical for result in reproduce(tmp_path / "golden", Predictor(bundle, threads=1))] == [True]


def test_different_masks_are_detected(golden: Path, bundle: Bundle) -> None:
    changed = replace(bundle, inference=bundle.inference.model_copy(update={"threshold": 0.7}))
    results = reproduce(golden, Predictor(changed, threads=1))
    assert not all(result.ok for result in results)
    assert not any(result.identical for result in results if not result.ok)


def test_a_host_that_does_not_reproduce_is_refused(golden: Path, bundle: Bundle) -> None:
    require_reproduced(golden, Predictor(bundle, threads=1))
    changed = replace(bundle, inference=bundle.inference.model_copy(update={"threshold": 0.7}))
    with pytest.raises(NotReproducedError, match="golden cases are not reproduced") as caught:
        require_reproduced(golden, Predictor(changed, threads=1))
    assert "Dice" in caught.value.fields["found"]


@pytest.mark.parametrize("name", NAMES)
def test_damaged_golden_cases_and_those_of_another_model_are_refused(
    golden: Path, bundle: Bundle, tmp_path: Path, name: str
) -> None:
    copy = shutil.copytree(golden, tmp_path / "copy")
    content = (copy / name).read_bytes()
    (copy / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(BundleError):
        reproduce(copy, Predictor(bundle, threads=1))
    (copy / name).write_bytes(content)
    index = json.loads((copy / "golden.json").read_text())
    write_json(copy / "golden.json", {**index, "digest": "another"})
    with pytest.raises(BundleError, match="another model"):
        reproduce(copy, Predictor(bundle, threads=1))
