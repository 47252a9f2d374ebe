"""Connected components against SciPy's, in boxes of every small shape."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import ndimage

from gtvray.geometry import label_components, largest_component

NEIGHBOURS = np.ones((3, 3, 3))


def test_as_many_components_as_a_box_can_hold_are_numbered() -> None:
    """Every second voxel: no two touch."""
    for shape in itertools.product(range(1, 10), repeat=3):
        mask = np.zeros(shape, dtype=bool)
        mask[::2, ::2, ::2] = True
        labels, count = label_components(mask)
        assert count == np.count_nonzero(mask), shape
        assert sorted(labels[mask]) == list(range(1, count + 1))


@pytest.mark.parametrize("seed", range(20))
def test_components_are_those_of_scipy(seed: int) -> None:
    random = np.random.default_rng(seed)
    for _ in range(50):
        mask = random.random(random.integers(1, 9, 3)) < random.random()
        labels, count = label_components(mask)
        expected, number = ndimage.label(mask, NEIGHBOURS)
        assert count == number
        # The same partition: each number of one corresponds to one number of the other.
        assert len(np.unique(np.stack([labels[mask], expected[mask]]), axis=1).T) == count
        assert not labels[~mask].any()


def test_the_largest_component_of_scattered_voxels_on_one_slice_is_found() -> None:
    mask = np.zeros((40, 40, 9), dtype=bool)
    mask[5:30:2, 7:20:2, 4] = True
    mask[21, 11, 4] = mask[22, 11, 4] = True
    kept = np.zeros_like(mask)
    kept[21:24, 11, 4] = True
    np.testing.assert_array_equal(largest_component(mask), kept)
    assert not largest_component(np.zeros((3, 3, 3), dtype=bool)).any()
