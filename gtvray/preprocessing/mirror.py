"""The other side of the head: a scan mirrored about the plane that best mirrors its tissue.

A tumour shows as a difference between the two sides, and the other side may lie outside the patch that the network is
shown. Mirrored, it lies at the same place. Asymmetry as an input for head-and-neck targets: Liu et al. 2024,
arXiv:2411.18290.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from gtvray.geometry import Volume

_TISSUE_HU = -300
# What tells the plane is the outline of head and shoulders, which is wide.
_STEP_MM = 6.0


def mirror_sum(hu: Volume) -> int:
    """Where the mid-sagittal plane lies: voxel i of the first axis has its mirror image at the returned value less i.

    The value is the one for which most tissue falls on tissue. It lies in the middle half of the scan: tissue cut at
    one side of it would otherwise be mirrored about the cut.

    Args:
        hu: HU on a grid with RAS axes.

    Returns:
        twice the plane's place in voxels; half voxels are places too.
    """
    steps = [max(1, round(_STEP_MM / spacing)) for spacing in hu.spacing_mm[1:]]
    tissue = (hu.array[:, :: steps[0], :: steps[1]] > _TISSUE_HU).reshape(len(hu.array), -1)
    n = len(tissue)
    # A line's tissue laid over its mirror image, for all planes at once: the convolution of the line with itself.
    size = fft.next_fast_len(2 * n, real=True)
    spectrum = fft.rfft(tissue.astype(np.float32), size, axis=0)
    overlap = np.rint(fft.irfft(np.square(spectrum.astype(np.complex128)).sum(axis=1), size))
    first, last = n // 2, n + n // 2
    return first + int(overlap[first:last].argmax())


def mirrored_hu(hu: NDArray[np.int16], plane_sum: int, fill_hu: int) -> NDArray[np.int16]:
    """HU (i, j, k) mirrored along the first axis; what lies beyond the scan's border is `fill_hu`."""
    start, stop = max(0, plane_sum - len(hu) + 1), min(len(hu), plane_sum + 1)
    result = np.full_like(hu, fill_hu)
    result[start:stop] = hu[plane_sum - stop + 1 : plane_sum - start + 1][::-1]
    return result
