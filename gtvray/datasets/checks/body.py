"""A scan seen coarsely: where the body is, how its slices follow each other. Cheap enough for every check."""

from __future__ import annotations

from dataclasses import dataclass

import cc3d
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from gtvray.geometry import Volume

AXES = "RAS"
# Between lung or foam (below -500) and fat (above -130), so neither noise nor blur at the skin matters.
TISSUE_ABOVE_HU = -400
# A head is 150 mm wide: 50 samples across, and a 512 x 512 slice becomes nine times less to look at.
_SAMPLE_MM = 3.0
# Labels 4-connected pieces of every axial slice at once: slices are not neighbours.
_IN_PLANE = np.zeros((3, 3, 3), dtype=bool)
_IN_PLANE[:, 1, 1] = _IN_PLANE[1, :, 1] = True


@dataclass(frozen=True)
class Sketch:
    """A scan thinned in plane to samples of about 3 mm; no slice is left out.

    Attributes:
        hu: the samples (right to left, posterior to anterior, inferior to superior).
        step_xy: every how many voxels one was taken, along the first two axes.
        spacing_mm: between samples.
        body: the largest piece of tissue, its cavities included; same shape as `hu`.
    """

    hu: NDArray[np.float32] | NDArray[np.int16]
    step_xy: tuple[int, int]
    spacing_mm: tuple[float, float, float]
    body: NDArray[np.bool_]

    @property
    def sample_cm2(self) -> float:
        """Area of a sample in its slice."""
        return self.spacing_mm[0] * self.spacing_mm[1] / 100


def sketch(scan: Volume) -> Sketch:
    """Thin a scan and find its body.

    Args:
        scan: CT in HU on any grid.
    """
    upright = scan.reoriented(AXES)
    x_mm, y_mm, z_mm = upright.spacing_mm
    step_x, step_y = (max(1, round(_SAMPLE_MM / spacing)) for spacing in (x_mm, y_mm))
    # Slices outermost in memory: most of what is asked goes slice by slice.
    hu = np.asfortranarray(upright.array[::step_x, ::step_y])
    return Sketch(hu, (step_x, step_y), (x_mm * step_x, y_mm * step_y, z_mm), _body(hu))


def _body(hu: NDArray[np.float32] | NDArray[np.int16]) -> NDArray[np.bool_]:
    tissue = hu > TISSUE_ABOVE_HU
    if not tissue.any():
        return tissue
    largest = np.asarray(cc3d.largest_k(tissue, k=1, connectivity=6)) > 0
    # By slice: the way from the nose to the lungs is one cavity in space, closed in nearly every slice.
    pieces, _ = ndimage.label(~largest, structure=_IN_PLANE)
    rims = (pieces[0], pieces[-1], pieces[:, 0], pieces[:, -1])
    outside = np.zeros(int(pieces.max()) + 1, dtype=bool)
    outside[np.unique(np.concatenate([rim.ravel() for rim in rims]))] = True
    outside[0] = False
    return np.asarray(~outside[pieces])
