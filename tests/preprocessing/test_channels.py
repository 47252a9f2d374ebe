"""Mirror plane and input channels, which are equal in training and serving."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gtvray.config import (
    AugmentationConfig,
    CacheConfig,
    InferenceConfig,
    NetworkConfig,
    PreprocessingConfig,
    TrainingConfig,
)
from gtvray.data import CaseCache, PatchSampler
from gtvray.data.patches.draws import CHANGES
from gtvray.datasets import index_dataset
from gtvray.geometry import Box, Volume
from gtvray.inference import Predictor, SegmentationRequest, estimate_uncertainty
from gtvray.io import read_volume, write_volume
from gtvray.models import build_network, weights_of, write_bundle
from gtvray.preprocessing import AIR_HU, mirror_sum, mirrored_hu, prepare

PATCH_IJK = (16, 16, 16)
MIRRORED = PreprocessingConfig(spacing_mm=(6.0, 6.0, 6.0), windows_hu=((-200.0, 300.0), (0.0, 80.0)), mirrored=True)


def _head(centre_i: float, size: int = 40) -> Volume:
    """Shoulders and a head, RAS, 6 mm: symmetric except for a bone on the patient's left."""
    i, j, k = np.meshgrid(np.arange(size) - centre_i, np.arange(24) - 11.5, np.arange(20.0), indexing="ij")
    body = (i / np.where(k < 8, 13, 7)) ** 2 + (j / 8) ** 2 < 1
    hu = np.where(body, 40, -1000).astype(np.int16)
    hu[(i - 4) ** 2 + j**2 + (k - 14) ** 2 < 5] = 900
    return Volume(hu, np.diag([6.0, 6, 6, 1]))


@pytest.mark.parametrize("centre_i", [19.5, 18.0, 21.5, 17.5])
def test_mirror_plane_is_the_middle_of_the_head(centre_i: float) -> None:
    head = _head(centre_i)
    assert mirror_sum(head) == 2 * centre_i
    twice = mirrored_hu(mirrored_hu(head.array, int(2 * centre_i), AIR_HU), int(2 * centre_i), AIR_HU)
    inside = twice != AIR_HU
    assert inside.mean() > 0.8
    np.testing.assert_array_equal(twice[inside], head.array[inside])


def test_mirrored_structure_has_the_mirrored_position() -> None:
    head = _head(18.5)
    mirrored = mirrored_hu(head.array, mirror_sum(head), AIR_HU)
    bones = [np.argwhere(hu == 900).mean(axis=0) for hu in (head.array, mirrored)]
    np.testing.assert_allclose(bones, [[22.5, 11.5, 14], [14.5, 11.5, 14]], atol=0.5)


def test_mirror_plane_of_half_a_head_is_within_the_scan() -> None:
    """A head cut through the middle has no counterpart; the mirrored scan still has the shape of the scan."""
    for part in (slice(20, None), slice(None, 20), slice(19, 21)):
        half = _head(19.5).array[part]
        plane_sum = mirror_sum(Volume(half, np.diag([6.0, 6, 6, 1])))
        assert len(half) // 2 <= plane_sum < 3 * len(half) // 2
        assert mirrored_hu(half, plane_sum, AIR_HU).shape == half.shape


def test_flipped_real_scan_has_the_flipped_plane(real_cases: Path) -> None:
    for case in index_dataset(real_cases).cases[:5]:
        hu = prepare(read_volume(case.image), MIRRORED).hu
        turned = hu.with_array(np.ascontiguousarray(hu.array[::-1]))
        # Of two planes with equal overlap the lower one is chosen.
        assert abs(mirror_sum(turned) - (2 * (hu.shape[0] - 1) - mirror_sum(hu))) <= 1


def test_mirror_plane_is_stable_when_one_side_is_cut_off() -> None:
    head = _head(19.5)
    for first in (4, 8, 10):
        assert mirror_sum(head) - 2 * first == mirror_sum(Volume(np.ascontiguousarray(head.array[first:]), head.affine))


@pytest.mark.parametrize("tilt", [0.25, -0.2])
def test_mirror_plane_of_a_sheared_scan_is_found(tilt: float) -> None:
    """On the orthogonal grid the head is still symmetric."""
    head = _head(19.5)
    affine = np.array([[6.0, 0, 0, 0], [0, 6, 6 * tilt, 0], [0, 0, 6, 0], [0, 0, 0, 1]])
    prepared = prepare(Volume(np.minimum(head.array, 40), affine), MIRRORED)
    assert prepared.notes
    assert prepared.mirrored is not None
    assert prepared.mirrored.dtype == np.int16
    np.testing.assert_array_equal(prepared.mirrored, prepared.hu.array[::-1])


def _whole(scan: Volume, preprocessing: PreprocessingConfig = MIRRORED) -> np.ndarray:
    prepared = prepare(scan, preprocessing)
    return (
        SegmentationRequest(prepared, preprocessing, InferenceConfig(mode="exhaustive"), prepared.hu.shape)
        .take()
        .channels
    )


def test_channels_are_windows_of_the_scan_then_of_the_mirror_image() -> None:
    plain = _whole(_head(19.5), MIRRORED.model_copy(update={"mirrored": False}))
    both = _whole(_head(19.5))
    assert (len(plain), len(both), MIRRORED.channels) == (2, 4, 4)
    np.testing.assert_array_equal(both[:2], plain)
    # Cropped to the body, which is symmetric here.
    np.testing.assert_array_equal(both[2:], plain[:, ::-1])


def test_training_and_serving_channels_are_equal(tmp_path: Path) -> None:
    """Read through the cache, in part and in full; a patch larger than the case is padded with air in both."""
    write_volume(tmp_path / "set/1/data.nii.gz", _head(17.5))
    write_volume(tmp_path / "set/1/label.nii.gz", _head(17.5).with_array((_head(17.5).array == 900).astype(np.uint8)))
    cases = CaseCache(tmp_path / "cache", MIRRORED, CacheConfig()).prepare_all(index_dataset(tmp_path / "set").cases)
    served = prepare(_head(17.5), MIRRORED)
    np.testing.assert_array_equal(cases[0].read_mirrored(Box.whole(cases[0].shape)), served.mirrored)
    np.testing.assert_array_equal(cases[0].whole()[0].mirrored, served.mirrored)
    still = AugmentationConfig(**dict.fromkeys(CHANGES, 0.0))
    for patch_ijk in (served.hu.shape, (48, 48, 48)):
        sampler = PatchSampler(cases, TrainingConfig(patch_ijk=patch_ijk), MIRRORED, still)
        patch = SegmentationRequest(served, MIRRORED, InferenceConfig(mode="exhaustive"), patch_ijk).take()
        np.testing.assert_allclose(sampler.sample(0)[0], patch.channels, atol=1e-6)


def _mirrored_channels(whole: np.ndarray, patch: np.ndarray) -> np.ndarray:
    """The mirror-image channels at the unique position where the scan's channels equal those of a patch."""
    size = patch.shape[1:]
    lines = np.lib.stride_tricks.sliding_window_view(whole[0], size)[..., size[0] // 2, size[1] // 2, :]
    middle = patch[0, size[0] // 2, size[1] // 2]
    boxes = [
        (slice(None), *(slice(a, a + n) for a, n in zip(start, size, strict=True)))
        for start in np.argwhere(np.isclose(lines, middle, atol=1e-6).all(axis=-1))
    ]
    found = [whole[box][2:] for box in boxes if np.allclose(whole[box][:2], patch[:2], atol=1e-6)]
    assert len(found) == 1
    return found[0]


def test_mirrored_channels_of_a_real_patch_are_equal_in_training_and_serving(real_cases: Path, tmp_path: Path) -> None:
    case = index_dataset(real_cases).cases[0]
    cached = CaseCache(tmp_path / "cache", MIRRORED, CacheConfig()).prepare(case)
    whole = _whole(read_volume(case.image))
    still = AugmentationConfig(**dict.fromkeys(CHANGES, 0.0))
    training = TrainingConfig(patch_ijk=PATCH_IJK, foreground_share=1.0)
    sampler = PatchSampler([cached], training, MIRRORED, still)
    request = SegmentationRequest(
        prepare(read_volume(case.image), MIRRORED), MIRRORED, InferenceConfig(mode="body"), PATCH_IJK
    )
    served = [request.take().channels for _ in range(request.remaining)]
    middle = len(served) // 2
    for patch in [*(sampler.sample(number)[0].numpy() for number in range(4)), *served[middle : middle + 2]]:
        np.testing.assert_allclose(patch[2:], _mirrored_channels(whole, patch), atol=1e-6)
        assert np.abs(patch[2:] - patch[:2]).max() > 0.1


def test_spatial_augmentation_transforms_both_sides_together(tmp_path: Path) -> None:
    """The channels of a symmetric scan stay equal to those of its mirror image under every augmentation."""
    scan = _head(19.5)
    scan = scan.with_array(np.minimum(scan.array, 40))
    write_volume(tmp_path / "set/1/data.nii.gz", scan)
    write_volume(tmp_path / "set/1/label.nii.gz", scan.with_array((scan.array > 0).astype(np.uint8)))
    cases = CaseCache(tmp_path / "cache", MIRRORED, CacheConfig()).prepare_all(index_dataset(tmp_path / "set").cases)
    moving: dict[str, Any] = dict.fromkeys(("rotate", "zoom", "elastic", "flip_left_right"), 1.0)
    augmentation = AugmentationConfig(**{**dict.fromkeys(CHANGES, 0.0), **moving})
    sampler = PatchSampler(cases, TrainingConfig(patch_ijk=PATCH_IJK), MIRRORED, augmentation)
    for number in range(6):
        image = sampler.sample(number)[0]
        assert image.shape == (4, *PATCH_IJK)
        assert torch.equal(image[:2], image[2:])


def test_caches_without_mirror_image_keep_their_keys(tmp_path: Path) -> None:
    """An entry without the mirror image keeps its key; with it, the key differs."""
    write_volume(tmp_path / "set/1/data.nii.gz", _head(19.5))
    write_volume(tmp_path / "set/1/label.nii.gz", _head(19.5).with_array((_head(19.5).array == 900).astype(np.uint8)))
    case = index_dataset(tmp_path / "set").cases[0]
    plain = CaseCache(tmp_path / "cache", MIRRORED.model_copy(update={"mirrored": False}), CacheConfig()).prepare(case)
    mirrored = CaseCache(tmp_path / "cache", MIRRORED, CacheConfig()).prepare(case)
    assert plain.folder != mirrored.folder
    assert plain.read_mirrored(Box.whole(plain.shape)) is None
    assert plain.whole()[0].mirrored is None


@pytest.mark.parametrize("mode", ["body", "localised"])
def test_bundle_with_mirror_image_predicts_mask_and_uncertainty(tmp_path: Path, mode: Any) -> None:
    """Uncertainty runs on a part of the scan, with the mirror image of the full scan."""
    torch.manual_seed(0)
    settings = NetworkConfig(features=(4, 4, 8))
    network = build_network(settings, MIRRORED.channels, MIRRORED.spacing_mm, PATCH_IJK)
    bundle = write_bundle(
        tmp_path / "bundle",
        weights=weights_of(network),
        preprocessing=MIRRORED,
        network=settings,
        patch_ijk=PATCH_IJK,
        inference=InferenceConfig(threshold=0.3, mode=mode),
        info={},
    )
    predictor, scan = Predictor(bundle), _head(18.5)
    mask = predictor.predict(scan)
    assert mask.shape == scan.shape
    prepared = prepare(scan, MIRRORED)
    found, _ = estimate_uncertainty(predictor, prepared, mask)
    assert 0 <= found.expected_dice_loss <= 1
    part = prepared.cropped(Box((1, 2, 3), (9, 12, 14)))
    assert part.mirrored is not None
    assert prepared.mirrored is not None
    np.testing.assert_array_equal(part.mirrored, prepared.mirrored[1:9, 2:12, 3:14])
