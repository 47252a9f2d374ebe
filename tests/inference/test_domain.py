"""The domain check: heads pass, other scans are flagged with reasons or rejected."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from gtvray.config import PreprocessingConfig
from gtvray.errors import DataError
from gtvray.geometry import Volume
from gtvray.inference import out_of_domain, training_ranges
from gtvray.inference.domain import filled_by_slice
from gtvray.io import read_volume
from gtvray.preprocessing import Prepared, prepare

CONFIG = PreprocessingConfig()


def _phantoms(folder: Path, count: int = 4) -> list[Prepared]:
    return [prepare(read_volume(path), CONFIG) for path in sorted(folder.rglob("data.nii.gz"))[:count]]


def _with(prepared: Prepared, array: np.ndarray) -> Prepared:
    return replace(prepared, hu=Volume(np.ascontiguousarray(array), prepared.hu.affine))


def _has_reason(reasons: tuple[str, ...], words: str) -> bool:
    return any(words in reason for reason in reasons)


def test_phantoms_are_not_flagged(phantoms: Path) -> None:
    assert [out_of_domain(prepared) for prepared in _phantoms(phantoms, 12)] == [()] * 12


def test_cropped_flipped_or_metal_filled_head_is_flagged(phantoms: Path) -> None:
    for prepared in _phantoms(phantoms):
        hu = prepared.hu.array
        assert _has_reason(out_of_domain(_with(prepared, hu[: hu.shape[0] // 2])), "a side of the image")
        assert _has_reason(out_of_domain(_with(prepared, hu[:, :, ::-1])), "not at the upper end")
        assert _has_reason(out_of_domain(_with(prepared, hu[:, :, : hu.shape[2] // 4])), "no skull")
        implant = hu.copy()
        middle = [n // 2 for n in hu.shape]
        implant[tuple(slice(m - 4, m + 4) for m in middle)] = 3071
        assert _has_reason(out_of_domain(_with(prepared, implant)), "metal")


def test_leg_phantom_is_flagged(phantoms: Path) -> None:
    (prepared,) = _phantoms(phantoms, 1)
    i, j = np.mgrid[-40:40, -40:40]
    leg = np.full((80, 80, 60), -1000, np.int16)
    leg[i**2 + j**2 < 25**2] = 50
    leg[i**2 + j**2 < 4**2] = 900
    reasons = out_of_domain(_with(prepared, leg))
    assert _has_reason(reasons, "no airway")
    assert _has_reason(reasons, "no skull")


def test_ranges_are_widened_by_the_training_cases(phantoms: Path) -> None:
    prepared = _phantoms(phantoms)
    halves = [_with(each, each.hu.array[: each.hu.shape[0] // 2]) for each in prepared]
    ranges = training_ranges(each.hu for each in halves[1:])
    assert ranges["side_share"][1] > 0.5
    assert _has_reason(out_of_domain(halves[0]), "a side of the image")
    assert not _has_reason(out_of_domain(halves[0], ranges), "a side of the image")
    assert out_of_domain(prepared[0], ranges) == (), "usual is never less than by default"


@pytest.mark.parametrize("shape", [(60, 60, 1), (60, 60, 3), (60, 60, 12)])
def test_too_few_slices_or_too_small_a_body_is_rejected(shape: tuple[int, int, int]) -> None:
    hu = np.full(shape, -1000, np.int16)
    hu[10:50, 10:50] = 50
    scan = Volume(hu, np.diag([3.0, 3, 1, 1]))
    with pytest.raises(DataError, match="too few slices") as caught:
        out_of_domain(prepare(scan, CONFIG), None, "scan.nii")
    assert caught.value.fields["where"] == "scan.nii"


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("sarcoma_gtv/STS_002/nifti/CT_image.nii.gz", "no airway"),
        ("sarcoma_gtv/STS_008/nifti/CT_image.nii.gz", "no skull"),
        ("lung_gtv/cancerdata_pat_1/nifti/image/phantom.nii.gz", "a side of the image"),
        ("totalsegmentator_example/example_ct.nii.gz", "no slice as narrow"),
        ("oddities/derived/base.nii.gz", "a side of the image"),
        ("head_ct/cranium.nii.gz", "more bone"),
    ],
)
def test_real_scan_of_another_region_is_flagged(shared_data: Path, path: str, words: str) -> None:
    assert _has_reason(out_of_domain(prepare(read_volume(shared_data / path), CONFIG)), words)


@pytest.mark.parametrize(
    ("path", "air"),
    [
        ("sarcoma_gtv/STS_008/nifti_other/MR_T1_image.nii.gz", -1024),
        ("totalsegmentator_example/example_mr_sm.nii.gz", -700),
    ],
)
def test_mr_is_rejected_and_flagged_when_shifted_into_hu(shared_data: Path, path: str, air: int) -> None:
    scan = read_volume(shared_data / path)
    with pytest.raises(DataError):
        prepare(scan, CONFIG)
    shifted = scan.with_array(np.clip(scan.array.astype(np.int32) + air, -1024, 3071).astype(np.int16))
    assert out_of_domain(prepare(shifted, CONFIG))


def test_real_head_and_neck_scans_are_rarely_flagged(real_cases: Path) -> None:
    """Every tenth training case. Of all 170, 9 were flagged: little or no skull in view, metal, shoulders only."""
    scans = sorted(real_cases.glob("*/data.nii.gz"))[::10]
    flagged = [path.parent.name for path in scans if out_of_domain(prepare(read_volume(path), CONFIG))]
    assert len(flagged) <= 2, flagged


@pytest.mark.parametrize("seed", range(8))
def test_holes_are_filled_per_slice(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = ndimage.gaussian_filter(rng.normal(size=(24, 31, 6)), 1.5) > rng.uniform(-0.05, 0.05)
    expected = np.stack([ndimage.binary_fill_holes(mask[:, :, k]) for k in range(mask.shape[2])], axis=2)
    assert (expected & ~mask).any()
    np.testing.assert_array_equal(filled_by_slice(mask), expected)
    assert filled_by_slice(np.ones((3, 3, 2), bool)).all()
    assert not filled_by_slice(np.zeros((3, 3, 2), bool)).any()
