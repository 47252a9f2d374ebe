"""Random changes to a training patch, keyed by the sample's number so that nothing else can change them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from gtvray.config import AugmentationConfig

Patch = NDArray[np.float32]
Mask = NDArray[np.uint8]


def augment(
    image: Patch, mask: Mask, config: AugmentationConfig, rng: np.random.Generator, fill: float = 0.0
) -> tuple[Patch, Mask]:
    """Apply the configured changes in a fixed order.

    Args:
        image: channels (c, i, j, k), 0..1; axis i runs right to left.
        mask: (i, j, k).
        config: probabilities and ranges.
        rng: the sample's own generator.
        fill: intensity outside the patch.
    """
    # Every number is drawn whether used or not: switching one change off leaves the others as they were.
    draws = rng.random(5)
    angles = np.deg2rad(config.rotate_degrees) * rng.uniform(-1, 1, 3)
    zoom = 1.0 + config.scale * rng.uniform(-1, 1)
    sigma, gain, shift, power = rng.uniform((0.0, 0.85, -0.05, 0.75), (0.08, 1.15, 0.05, 1.4))
    if draws[0] < config.flip_left_right:
        image, mask = image[:, ::-1], mask[::-1]
    if draws[1] < config.rotate:
        image, mask = _rotate(image, mask, angles, zoom, fill)
    image = np.array(image, dtype=np.float32)
    if draws[2] < config.noise:
        image += rng.standard_normal(image.shape, dtype=np.float32) * np.float32(sigma)
    if draws[3] < config.brightness:
        image *= np.float32(gain)
        image += np.float32(shift)
    if draws[4] < config.gamma:
        image = np.power(np.clip(image, 0, 1), np.float32(power), dtype=np.float32)
    return np.clip(image, 0.0, 1.0), np.ascontiguousarray(mask)


def _rotate(image: Patch, mask: Mask, angles: NDArray[np.float64], zoom: float, fill: float) -> tuple[Patch, Mask]:
    """Rotate and scale about the patch's centre; linear for the image, linear and one half for the mask."""
    matrix = Rotation.from_euler("xyz", angles).as_matrix() / zoom
    centre = (np.asarray(mask.shape) - 1) / 2
    offset = centre - matrix @ centre
    turned = np.stack(
        [ndimage.affine_transform(channel, matrix, offset, order=1, mode="constant", cval=fill) for channel in image]
    )
    soft = ndimage.affine_transform(mask.astype(np.float32), matrix, offset, order=1, mode="constant")
    return turned.astype(np.float32), (soft >= 0.5).astype(np.uint8)
