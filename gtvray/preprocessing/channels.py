"""Input channels of the network: intensity windows of the scan and of its mirror image.

A tumour shows as a difference between the two sides of the head, and the other side may lie outside the patch. In the
scan mirrored about its mid-sagittal plane it has the same position. Asymmetry as an input for head-and-neck targets:
Liu et al. 2024, arXiv:2411.18290.
"""

from __future__ import annotations

from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from gtvray.geometry import Volume

_TISSUE_HU = -300
# The plane follows from the outline of head and shoulders, which a coarse grid resolves.
_STEP_MM = 6.0


def mirror_sum(hu: Volume) -> int:
    """Locate the mid-sagittal plane: the mirror image of voxel i of the first axis is the returned value minus i.

    The plane maximises the overlap of tissue with its mirror image. It is searched in the middle half of the scan:
    otherwise tissue that is cut off at one side would be mirrored about the cut.

    Args:
        hu: HU on a grid with RAS axes.

    Returns:
        twice the position of the plane in voxels, since it may lie between two voxels.
    """
    steps = [max(1, round(_STEP_MM / spacing)) for spacing in hu.spacing_mm[1:]]
    tissue = (hu.array[:, :: steps[0], :: steps[1]] > _TISSUE_HU).reshape(len(hu.array), -1)
    n = len(tissue)
    # The overlap for all planes at once is the convolution of each line with itself.
    size = fft.next_fast_len(2 * n, real=True)
    spectrum = fft.rfft(tissue.astype(np.float32), size, axis=0)
    overlap = np.rint(fft.irfft(np.square(spectrum.astype(np.complex128)).sum(axis=1), size))
    first, last = n // 2, n + n // 2
    return first + int(overlap[first:last].argmax())


def mirrored_hu(hu: NDArray[np.int16], plane_sum: int, fill_hu: int) -> NDArray[np.int16]:
    """Mirror HU (i, j, k) along the first axis; voxels whose mirror image is outside the scan are `fill_hu`."""
    start, stop = max(0, plane_sum - len(hu) + 1), min(len(hu), plane_sum + 1)
    result = np.full_like(hu, fill_hu)
    result[start:stop] = hu[plane_sum - stop + 1 : plane_sum - start + 1][::-1]
    return result


def to_channels(
    hu: NDArray[np.int16], windows_hu: tuple[tuple[float, float], ...], mirrored: NDArray[np.int16] | None = None
) -> NDArray[np.float32]:
    """Convert HU (i, j, k) to float32 channels (c, i, j, k), each scaled to 0..1 over its window and clipped.

    There is one channel per window of `hu`, followed by one per window of `mirrored` if given.
    """
    sources = [hu] if mirrored is None else [hu, mirrored]
    channels = np.empty((len(sources) * len(windows_hu), *hu.shape), dtype=np.float32)
    for channel, (source, (low, high)) in zip(channels, product(sources, windows_hu), strict=True):
        np.subtract(source, np.float32(low), out=channel)
        np.multiply(channel, np.float32(1.0 / (high - low)), out=channel)
        np.clip(channel, 0.0, 1.0, out=channel)
    return channels
