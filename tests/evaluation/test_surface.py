"""Surfel areas of all 256 neighbourhoods against MONAI's table, and surface voxels against SciPy's erosion."""

from __future__ import annotations

import numpy as np
import pytest
from monai.metrics.utils import ENCODING_KERNEL, create_table_neighbour_code_to_surface_area
from scipy.ndimage import binary_erosion

from gtvray.evaluation.surface import crop_to_union, surface_voxels, surfel_areas_mm2


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (0.9, 1.3, 3.0)])
def test_surfel_area_of_every_neighbourhood_equals_monais(spacing_mm: tuple[float, float, float]) -> None:
    table, _ = create_table_neighbour_code_to_surface_area(spacing_mm)
    bits = np.array(ENCODING_KERNEL[3])
    areas = [surfel_areas_mm2((code & bits) > 0, spacing_mm).item() for code in range(256)]
    assert areas == pytest.approx(table.tolist(), abs=1e-5)


def test_surface_voxels_are_the_mask_minus_its_erosion() -> None:
    mask = np.random.default_rng(0).random((14, 11, 9)) > 0.2
    cropped, _ = crop_to_union(mask, mask)
    assert np.array_equal(surface_voxels(cropped), cropped ^ binary_erosion(cropped))


def test_crop_contains_both_masks_and_an_empty_border() -> None:
    first, second = np.zeros((2, 9, 9, 9), dtype=bool)
    first[0, 4, 4] = second[3, 5, 8] = True
    cropped = crop_to_union(first, second)
    assert cropped[0].shape == (6, 4, 7)
    assert np.argwhere(cropped[0]).tolist() == [[1, 1, 1]]
    assert np.argwhere(cropped[1]).tolist() == [[4, 2, 5]]
