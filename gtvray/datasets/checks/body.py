"""A scan sampled coarsely in plane, with its body: small enough for every check."""

from __future__ import annotations

from dataclasses import dataclass

import cc3d
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from gtvray.geometry import Volume

AXES = "RAS"
# Between lung or foam (below -500) and fat (above -130), so that noise and blur at the skin do not matter.
TISSUE_ABOVE_HU = -400
# A head is 150 mm wide: 50 samples across, and a 512 x 512 slice has nine times fewer samples than pixels.
_SAMPLE_MM = 3.0
# Labels 4-connected components of every axial slice at once; slices are not neighbours.
_IN_PLANE = np.zeros((3, 3, 3), dtype=bool)
_IN_PLANE[:, 1, 1] = _IN_PLANE[1, :, 1] = True


@dataclass(frozen=True)
class Sketch:
    """A scan sampled every 3 mm or so in plane; all slices are kept.

    Attributes:
        hu: the samples, axes RAS.
        step_xy: sampling step in voxels along the first two axes.
        spacing_mm: spacing of the samples.
        body: the largest component of tissue, including its cavities; same shape as `hu`.
    """

    hu: NDArray[np.float32] | NDArray[np.int16]
    step_xy: tuple[int, int]
    spacing_mm: tuple[float, float, float]
    body: NDArray[np.bool_]

    @property
    def sample_cm2(self) -> float:
        """Area of a sample within its slice."""
        return self.spacing_mm[0] * self.spacing_mm[1] / 100


def make_sketch(scan: Volume) -> Sketch:
    """Sample a scan and find its body.

    Args:
        scan: CT in HU on any grid.
    """
    upright = scan.reoriented(AXES)
    x_mm, y_mm, z_mm = upright.spacing_mm
    step_x, step_y = (max(1, round(_SAMPLE_MM / spacing)) for spacing in (x_mm, y_mm))
    # Slices are contiguous in memory, since most checks proceed slice by slice.
    hu = np.asfortranarray(upright.array[::step_x, ::step_y])
    return Sketch(hu, (step_x, step_y), (x_mm * step_x, y_mm * step_y, z_mm), _body(hu))


def _body(hu: NDArray[np.float32] | NDArray[np.int16]) -> NDArray[np.bool_]:
    tissue = hu > TISSUE_ABOVE_HU
    if not tissue.any():
        return tissue
    largest = np.asarray(cc3d.largest_k(tissue, k=1, connectivity=6)) > 0
    # By slice: the airway from the nose to the lungs is open in three dimensions, but closed in nearly every slice.
    pieces, _ = ndimage.label(~largest, structure=_IN_PLANE)
    rims = (pieces[0], pieces[-1], pieces[:, 0], pieces[:, -1])
    outside = np.zeros(int(pieces.max()) + 1, dtype=bool)
    outside[np.unique(np.concatenate([rim.ravel() for rim in rims]))] = True
    outside[0] = False
    return np.asarray(~outside[pieces])
