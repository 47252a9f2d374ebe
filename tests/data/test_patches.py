"""Training patches follow from their number, and switched-off changes leave the rest unchanged."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gtvray.config import AugmentationConfig, PreprocessingConfig, TrainingConfig
from gtvray.data import CachedCase, PatchSampler
from gtvray.data.cache.cases import _write_chunks
from gtvray.data.patches.draws import CHANGES
from gtvray.errors import DataError
from gtvray.geometry import Box
from gtvray.preprocessing import to_channels

PLAIN = AugmentationConfig(**dict.fromkeys(CHANGES, 0.0))
ALL = AugmentationConfig(**dict.fromkeys(CHANGES, 1.0))
WINDOWS = PreprocessingConfig(windows_hu=((-200.0, 300.0), (-1000.0, 1000.0)))


def _sampler(cases: list[CachedCase], augmentation: AugmentationConfig = ALL, **training: Any) -> PatchSampler:
    return PatchSampler(cases, TrainingConfig(**{"patch_ijk": (16, 16, 16), **training}), WINDOWS, augmentation)


def test_a_patch_depends_on_its_number_alone(prepared_cases: list[CachedCase]) -> None:
    forwards = [_sampler(prepared_cases).sample(number) for number in range(12)]
    sampler = _sampler(prepared_cases)
    for number in (11, 3, 3, 0, 7):
        for one, other in zip(sampler.sample(number), forwards[number], strict=True):
            np.testing.assert_array_equal(one, other)
    images = {image.numpy().tobytes() for image, _ in forwards}
    assert len(images) == 12
    assert _sampler(prepared_cases, seed=1).sample(3)[0].numpy().tobytes() not in images


def test_threads_change_nothing(prepared_cases: list[CachedCase]) -> None:
    """Neither those of torch nor those that share a sampler; torch would split the sum of one channel this large."""
    training = TrainingConfig(patch_ijk=(40, 40, 48))
    sampler = PatchSampler(prepared_cases, training, PreprocessingConfig(), ALL)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = sampler.batch(range(4))
        torch.set_num_threads(3)
        several = sampler.batch(range(4))
    finally:
        torch.set_num_threads(threads)
    with ThreadPoolExecutor(4) as pool:
        shared = [torch.stack(parts) for parts in zip(*pool.map(sampler.sample, range(4)), strict=True)]
    for one, other, third in zip(alone, several, shared, strict=True):
        assert torch.equal(one, other)
        np.testing.assert_array_equal(one.reshape(third.shape), third)


def test_batches_have_the_documented_shape_type_and_range(prepared_cases: list[CachedCase]) -> None:
    images, masks = _sampler(prepared_cases, patch_ijk=(16, 20, 24)).batch(range(8))
    assert images.shape == (8, 2, 16, 20, 24)
    assert masks.shape == (8, 1, 16, 20, 24)
    assert images.dtype == masks.dtype == torch.float32
    assert images.isfinite().all()
    assert images.min() >= 0
    assert images.max() <= 1
    assert set(np.unique(masks)) == {0, 1}


def test_each_pass_visits_every_case_once_in_its_own_order(prepared_cases: list[CachedCase]) -> None:
    seen: list[str] = []

    class Watched(CachedCase):
        def read(self, box: Box) -> Any:
            seen.append(self.case_id)
            return super().read(box)

    sampler = _sampler([Watched(**vars(case)) for case in prepared_cases])
    sampler.batch(range(24))
    turns = [tuple(seen[start : start + 4]) for start in range(0, 24, 4)]
    assert all(sorted(turn) == ["0", "1", "2", "3"] for turn in turns)
    assert len(set(turns)) > 2


def test_the_foreground_share_is_kept(prepared_cases: list[CachedCase]) -> None:
    big = prepared_cases[:3]
    touched = {}
    for share in (0.0, 0.5, 1.0):
        sampler = _sampler(big, PLAIN, foreground_share=share, patch_ijk=(8, 8, 8))
        touched[share] = np.mean([bool(sampler.sample(n)[1].any()) for n in range(300)])
    assert touched[1.0] == 1
    assert touched[0.0] < 0.7
    # Five standard deviations of 300 draws.
    assert touched[0.5] == pytest.approx(0.5 + 0.5 * touched[0.0], abs=0.15)


def test_an_unaugmented_patch_is_a_crop_of_the_case(prepared_cases: list[CachedCase]) -> None:
    case = prepared_cases[0]
    hu, mask = case.read(Box.whole(case.shape))
    whole = to_channels(hu, WINDOWS.windows_hu)
    windows = np.lib.stride_tricks.sliding_window_view(whole[0], (16, 16, 16))
    for number in range(4):
        image, patch_mask = _sampler([case], PLAIN).sample(number)
        first, other = float(image[0, 0, 0, 0]), float(image[0, 15, 8, 3])
        places = np.argwhere((windows[..., 0, 0, 0] == first) & (windows[..., 15, 8, 3] == other))
        boxes = [Box(tuple(start), tuple(s + 16 for s in start)) for start in places.tolist()]
        box = next(box for box in boxes if np.array_equal(whole[(slice(None), *box.slices)], image))
        np.testing.assert_array_equal(mask[box.slices], patch_mask)


def test_a_case_smaller_than_the_patch_is_centred_in_it(prepared_cases: list[CachedCase]) -> None:
    case = prepared_cases[3]
    assert min(case.shape) < 16
    hu, mask = case.read(Box.whole(case.shape))
    patch = tuple(max(16, n + 5) for n in case.shape)
    image, patch_mask = _sampler([case], PLAIN, patch_ijk=patch).sample(0)
    before = [p // 2 - n // 2 for p, n in zip(patch, case.shape, strict=True)]
    inner = tuple(slice(b, b + n) for b, n in zip(before, case.shape, strict=True))
    np.testing.assert_array_equal(image[(slice(None), *inner)], to_channels(hu, WINDOWS.windows_hu))
    np.testing.assert_array_equal(patch_mask[inner], mask)
    assert patch_mask.sum() == mask.sum()
    image[(slice(None), *inner)] = 0
    assert not image.any()


def test_an_empty_list_of_cases_is_refused() -> None:
    with pytest.raises(DataError):
        _sampler([])


def test_augmentation_does_not_change_patch_positions(prepared_cases: list[CachedCase]) -> None:
    """Checked with mirroring: a patch that is only mirrored equals the mirrored plain patch."""
    flipped = PLAIN.model_copy(update={"flip_left_right": 1.0})
    for number in range(6):
        plain, mirrored = (_sampler(prepared_cases, config).sample(number) for config in (PLAIN, flipped))
        np.testing.assert_array_equal(mirrored[0], plain[0].flip(1))
        np.testing.assert_array_equal(mirrored[1], plain[1].flip(0))


class _Solid(CachedCase):
    """A large case that is metal and tumour everywhere."""

    @property
    def shape(self) -> tuple[int, int, int]:
        return 60, 60, 60

    def read(self, box: Box) -> Any:
        return np.full(box.shape, 3000, np.int16), np.ones(box.shape, np.uint8)

    def foreground_ijk(self) -> np.ndarray:
        return np.full((1, 3), 30, np.int32)


def test_a_warped_patch_has_no_empty_corners(prepared_cases: list[CachedCase]) -> None:
    solid = _Solid(**vars(prepared_cases[0]))
    moved = PLAIN.model_copy(update={"strength": 1.0, "rotate": 1.0, "rotate_degrees": 45.0, "zoom": 1.0})
    sampler = _sampler([solid], moved, patch_ijk=(12, 12, 12), foreground_share=1.0)
    for number in range(20):
        image, mask = sampler.sample(number)
        assert image.shape == (2, 12, 12, 12)
        assert image.min() == 1
        assert mask.min() == 1


def test_a_read_decompresses_only_the_blocks_it_needs(tmp_path: Path) -> None:
    """Voxels outside the corrupted middle of a file can still be read."""
    hu = np.random.default_rng(0).integers(-1000, 1000, (192, 40, 40)).astype(np.int16)
    _write_chunks(hu, tmp_path / "hu.b2nd", 3)
    _write_chunks(np.ones(hu.shape, np.uint8), tmp_path / "mask.b2nd", 3)
    case = CachedCase("1", tmp_path, {"shape": hu.shape})
    content = bytearray((tmp_path / "hu.b2nd").read_bytes())
    third = len(content) // 3
    content[third : 2 * third] = b"\xff" * third
    (tmp_path / "hu.b2nd").write_bytes(content)
    for box in (Box((0, 0, 0), (30, 30, 30)), Box((130, 2, 3), (190, 30, 30))):
        np.testing.assert_array_equal(case.read(box)[0], hu[box.slices])
    with pytest.raises(RuntimeError):
        case.read(Box.whole(hu.shape))


@pytest.mark.parametrize("augmentation", [PLAIN, ALL], ids=["plain", "all"])
def test_patches_are_made_on_the_device_without_reading_back(
    augmentation: AugmentationConfig, prepared_cases: list[CachedCase]
) -> None:
    """torch's meta device stands in for a GPU: it rejects tensors of other devices, and reading any value."""
    training = TrainingConfig(patch_ijk=(16, 16, 16))
    sampler = PatchSampler(prepared_cases, training, WINDOWS, augmentation, "meta")
    images, masks = sampler.batch(range(12))
    assert (images.device.type, masks.device.type) == ("meta", "meta")
    expected = PatchSampler(prepared_cases, training, WINDOWS, augmentation).batch(range(12))
    assert [each.shape for each in (images, masks)] == [each.shape for each in expected]


def test_noise_is_the_same_on_every_device(prepared_cases: list[CachedCase], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is drawn by the CPU's generator, since a GPU's gives other numbers for the same seed."""
    noisy = AugmentationConfig(**{**dict.fromkeys(CHANGES, 0.0), "noise": 1.0})
    devices: list[str] = []
    drawn = torch.randn

    def randn(*args: Any, **kwargs: Any) -> torch.Tensor:
        devices.append(kwargs["generator"].device.type)
        return drawn(*args, **kwargs)

    monkeypatch.setattr(torch, "randn", randn)
    for device in ("cpu", "meta"):
        PatchSampler(prepared_cases, TrainingConfig(patch_ijk=(16, 16, 16)), WINDOWS, noisy, device).sample(0)
    assert devices == ["cpu", "cpu"]
