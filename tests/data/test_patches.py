"""Training patches: the number alone decides, and nothing that is turned off touches the rest."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gtvray.config import AugmentationConfig, PreprocessingConfig, TrainingConfig
from gtvray.data import CachedCase, PatchSampler
from gtvray.data.augmentation import augment
from gtvray.errors import DataError
from gtvray.geometry import Box
from gtvray.preprocessing import to_channels

PLAIN = AugmentationConfig(flip_left_right=0, rotate=0, noise=0, brightness=0, gamma=0)
ALL = AugmentationConfig(flip_left_right=1, rotate=1, noise=1, brightness=1, gamma=1)
WINDOWS = PreprocessingConfig(windows_hu=((-200.0, 300.0), (-1000.0, 1000.0)))


def _sampler(cases: list[CachedCase], augmentation: AugmentationConfig = ALL, **training: Any) -> PatchSampler:
    return PatchSampler(cases, TrainingConfig(**{"patch_ijk": (16, 16, 16), **training}), WINDOWS, augmentation)


def test_a_patch_depends_on_its_number_alone(prepared_cases: list[CachedCase]) -> None:
    forwards = [_sampler(prepared_cases).sample(number) for number in range(12)]
    sampler = _sampler(prepared_cases)
    for number in (11, 3, 3, 0, 7):
        for one, other in zip(sampler.sample(number), forwards[number], strict=True):
            np.testing.assert_array_equal(one, other)
    images = {image.tobytes() for image, _ in forwards}
    assert len(images) == 12
    assert _sampler(prepared_cases, seed=1).sample(3)[0].tobytes() not in images


def test_patches_are_of_the_stated_form(prepared_cases: list[CachedCase]) -> None:
    images, masks = _sampler(prepared_cases, patch_ijk=(16, 20, 24)).batch(range(8))
    assert images.shape == (8, 2, 16, 20, 24)
    assert masks.shape == (8, 1, 16, 20, 24)
    assert images.dtype == masks.dtype == np.float32
    assert images.min() >= 0
    assert images.max() <= 1
    assert set(np.unique(masks)) == {0, 1}


def test_each_turn_visits_every_case_once_in_an_order_of_its_own(prepared_cases: list[CachedCase]) -> None:
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
    touched = {
        share: np.mean(
            [_sampler(big, PLAIN, foreground_share=share, patch_ijk=(8, 8, 8)).sample(n)[1].any() for n in range(300)]
        )
        for share in (0.0, 0.5, 1.0)
    }
    assert touched[1.0] == 1
    assert touched[0.0] < 0.7
    # Five standard deviations of 300 draws.
    assert touched[0.5] == pytest.approx(0.5 + 0.5 * touched[0.0], abs=0.15)


def test_an_unaugmented_patch_is_a_piece_of_the_case(prepared_cases: list[CachedCase]) -> None:
    case = prepared_cases[0]
    hu, mask = case.read(Box.whole(case.shape))
    whole = to_channels(hu, WINDOWS.windows_hu)
    windows = np.lib.stride_tricks.sliding_window_view(whole[0], (16, 16, 16))
    for number in range(4):
        image, patch_mask = _sampler([case], PLAIN).sample(number)
        places = np.argwhere(
            (windows[..., 0, 0, 0] == image[0, 0, 0, 0]) & (windows[..., 15, 8, 3] == image[0, 15, 8, 3])
        )
        boxes = [Box(tuple(start), tuple(s + 16 for s in start)) for start in places.tolist()]
        box = next(box for box in boxes if np.array_equal(whole[(slice(None), *box.slices)], image))
        np.testing.assert_array_equal(mask[box.slices], patch_mask)


def test_a_case_smaller_than_the_patch_sits_in_its_middle(prepared_cases: list[CachedCase]) -> None:
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


def test_no_case_is_refused() -> None:
    with pytest.raises(DataError):
        _sampler([])


def _patch() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    mask = np.zeros((12, 14, 10), np.uint8)
    mask[3:8, 4:10, 2:7] = 1
    return rng.random((2, 12, 14, 10), dtype=np.float32), mask


@pytest.mark.parametrize("seed", range(5))
def test_augmentation_is_repeatable_and_keeps_the_mask_binary(seed: int) -> None:
    image, mask = _patch()
    kept = image.copy(), mask.copy()
    first, again = (augment(image, mask, ALL, np.random.default_rng(seed)) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)
    assert first[0].dtype == np.float32
    assert first[1].dtype == np.uint8
    assert set(np.unique(first[1])) == {0, 1}
    assert first[0].min() >= 0
    assert first[0].max() <= 1
    np.testing.assert_array_equal(image, kept[0])
    np.testing.assert_array_equal(mask, kept[1])


def test_left_and_right_are_mirrored_and_no_other_axis() -> None:
    image, mask = _patch()
    flipped = augment(image, mask, PLAIN.model_copy(update={"flip_left_right": 1.0}), np.random.default_rng(0))
    np.testing.assert_array_equal(flipped[0], image[:, ::-1])
    np.testing.assert_array_equal(flipped[1], mask[::-1])


def test_image_and_mask_turn_together() -> None:
    mask = _patch()[1]
    image = mask[None].astype(np.float32)
    turned = PLAIN.model_copy(update={"rotate": 1.0, "rotate_degrees": 40.0})
    for seed in range(4):
        there, there_mask = augment(image, mask, turned, np.random.default_rng(seed))
        assert not np.array_equal(there_mask, mask)
        np.testing.assert_array_equal(there[0] >= 0.5, there_mask.astype(bool))


def test_the_intensity_changes_leave_the_mask_alone() -> None:
    image, mask = _patch()
    for name in ("noise", "brightness", "gamma"):
        changed, same = augment(image, mask, PLAIN.model_copy(update={name: 1.0}), np.random.default_rng(1))
        assert not np.array_equal(changed, image)
        np.testing.assert_array_equal(same, mask)


@pytest.mark.parametrize("off", ["flip_left_right", "rotate", "noise", "brightness"])
def test_switching_one_change_off_leaves_the_others_as_they_were(off: str) -> None:
    """On a constant patch without noise only brightness and gamma show; with one off, the later ones must not move."""
    constant, mask = np.full((1, 8, 8, 8), 0.6, np.float32), np.zeros((8, 8, 8), np.uint8)
    later = {"brightness": ["gamma"]}.get(off, ["brightness", "gamma"])
    shown = PLAIN.model_copy(update=dict.fromkeys(later, 1.0))
    quiet = shown.model_copy(update={off: 0.0})
    loud = shown.model_copy(update={off: 1.0})
    for seed in range(3):
        alone = augment(constant, mask, quiet, np.random.default_rng(seed))[0][0, 4, 4, 4]
        centre = augment(constant, mask, loud, np.random.default_rng(seed), fill=0.6)[0]
        if off == "noise":
            assert float(centre.mean()) == pytest.approx(float(alone), abs=0.02)
        elif off != "brightness":
            assert float(centre[0, 4, 4, 4]) == pytest.approx(float(alone), abs=1e-5)
        else:
            other = augment(constant, mask, loud.model_copy(update={"noise": 1.0}), np.random.default_rng(seed))[0]
            assert float(other.mean()) == pytest.approx(float(centre.mean()), abs=0.02)
