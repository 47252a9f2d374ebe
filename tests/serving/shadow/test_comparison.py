"""The Dice of two masks that are read in blocks."""

from __future__ import annotations

import numpy as np
import pytest

from gtvray.errors import GeometryError
from gtvray.evaluation import dice
from gtvray.geometry import Volume
from gtvray.io import encode_nifti
from gtvray.serving.shadow import mask_dice


def encoded(mask: np.ndarray, spacing_mm: float = 1.0) -> bytes:
    affine = np.diag([spacing_mm, spacing_mm, spacing_mm, 1.0])
    return encode_nifti(Volume(mask.astype(np.uint8), affine), compress=True)


def test_blockwise_dice_equals_that_of_the_decoded_masks() -> None:
    draw = np.random.default_rng(0)
    # More than one block, and not a whole number of them.
    first, second = (draw.random((131, 127, 113)) < share for share in (0.3, 0.6))
    assert mask_dice(encoded(first), encoded(second)) == dice(first, second)
    assert mask_dice(encoded(first), encoded(first)) == 1.0
    assert mask_dice(encoded(first), encoded(~first)) == 0.0


def test_two_empty_masks_agree_and_one_does_not() -> None:
    empty, full = np.zeros((3, 4, 5), bool), np.ones((3, 4, 5), bool)
    assert mask_dice(encoded(empty), encoded(empty)) == 1.0
    assert mask_dice(encoded(empty), encoded(full)) == 0.0


@pytest.mark.parametrize("other", [encoded(np.ones((3, 4, 6), bool)), encoded(np.ones((3, 4, 5), bool), 2.0)])
def test_masks_on_other_grids_are_not_compared(other: bytes) -> None:
    with pytest.raises(GeometryError, match="different grids"):
        mask_dice(encoded(np.ones((3, 4, 5), bool)), other)
