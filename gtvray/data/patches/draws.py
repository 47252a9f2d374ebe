"""The random choices for one training patch, all drawn before any is applied.

Every number is drawn whether it is used or not, so switching off a change or setting another range leaves the draws of
all others unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from gtvray.config import AugmentationConfig

Triple = tuple[float, float, float]

# Names of the probabilities in the config. A new one is added at the end, so that the others keep their draws.
CHANGES = (
    "flip_left_right",
    "flip_front_back",
    "flip_up_down",
    "rotate",
    "zoom",
    "elastic",
    "noise",
    "blur",
    "brightness",
    "contrast",
    "low_resolution",
    "gamma_inverted",
    "gamma",
)
# Voxels at least this many times as long as wide are flat: nnU-Net's threshold for changes in the plane alone.
_FLAT_RATIO = 3.0


@dataclass(frozen=True)
class Draw:
    """The changes to one patch; None is a change that is not applied.

    Attributes:
        flip_ijk: axes to mirror.
        angles_degrees: rotation about i, then j, then k.
        span_ijk: the patch spans this many times its own size along each axis.
        elastic_mm: largest elastic displacement along an axis.
        noise_sigma: standard deviation, as a share of the window.
        blur_sigma_voxels: standard deviation along each axis.
        brightness: factor.
        contrast: factor on distances from the mean.
        kept_ijk: share of the voxels that simulated low resolution keeps along each axis.
        gamma_inverted: exponent, applied to the negative.
        gamma: exponent.
        seed: of the draws for each voxel: noise and elastic displacements.
    """

    flip_ijk: tuple[bool, bool, bool] = (False, False, False)
    angles_degrees: Triple | None = None
    span_ijk: Triple | None = None
    elastic_mm: float | None = None
    noise_sigma: float | None = None
    blur_sigma_voxels: Triple | None = None
    brightness: float | None = None
    contrast: float | None = None
    kept_ijk: Triple | None = None
    gamma_inverted: float | None = None
    gamma: float | None = None
    seed: int = 0

    @property
    def moves(self) -> bool:
        """Whether voxels are interpolated."""
        return self.angles_degrees is not None or self.span_ijk is not None or self.elastic_mm is not None

    def matrix(self, spacing_mm: Sequence[float]) -> NDArray[np.float64]:
        """Matrix from offsets to the patch's centre, in its voxels, to offsets in voxels of the scan; shape (3, 3).

        The rotation is in millimetres: on a grid with unequal spacings, rotating indices would shear.
        """
        turn = Rotation.from_euler("xyz", self.angles_degrees or (0, 0, 0), degrees=True).as_matrix()
        spacing = np.asarray(spacing_mm, dtype=np.float64)
        return np.asarray(turn * (spacing * (self.span_ijk or (1, 1, 1))) / spacing[:, None])


def draw_changes(config: AugmentationConfig, spacing_mm: Sequence[float], rng: np.random.Generator) -> Draw:
    """Draw the changes to a patch.

    Where voxels are flat, a patch is rotated about their long axis only, and not zoomed or made coarser along it:
    interpolation between thick slices would show the network anatomy that no scan has.

    Args:
        config: probabilities and ranges.
        spacing_mm: voxel spacing of the patch.
        rng: the sample's own generator; the config does not change how many numbers are taken from it.
    """
    seed = int(rng.integers(2**62))
    # For each change: whether it is applied, and up to three numbers for its size.
    rolls = dict(zip(CHANGES, rng.random((len(CHANGES), 4)), strict=True))
    strength = config.strength

    def happens(name: str) -> bool:
        return bool(rolls[name][0] < getattr(config, name))

    def uniform(name: str, low: float, high: float) -> float:
        return float(low + (high - low) * rolls[name][1])

    def factor(name: str, limits: tuple[float, float]) -> float:
        # Factors below 1 are as likely as those above it, whatever the range on either side.
        limit = limits[0] if rolls[name][2] < 0.5 else limits[1]
        return float(1 + strength * (limit - 1) * rolls[name][1])

    turns, in_plane = _free_axes(spacing_mm)
    angles = (2 * rolls["rotate"][1:] - 1) * config.rotate_degrees * strength * turns
    span = 1 + strength * (uniform("zoom", *config.zoom_range) - 1)
    kept = 1 - strength * (1 - uniform("low_resolution", config.low_resolution_scale, 1))
    low, high = config.blur_sigma_voxels
    sigmas = (low + (high - low) * rolls["blur"][1:]) * strength
    return Draw(
        flip_ijk=(happens(CHANGES[0]), happens(CHANGES[1]), happens(CHANGES[2])),
        angles_degrees=_triple(angles) if happens("rotate") else None,
        span_ijk=_triple(np.where(in_plane, span, 1)) if happens("zoom") else None,
        elastic_mm=uniform("elastic", 0, config.elastic_mm) * strength if happens("elastic") else None,
        noise_sigma=uniform("noise", 0, config.noise_sigma) * strength if happens("noise") else None,
        blur_sigma_voxels=_triple(sigmas) if strength and happens("blur") else None,
        brightness=factor("brightness", config.brightness_range) if happens("brightness") else None,
        contrast=factor("contrast", config.contrast_range) if happens("contrast") else None,
        kept_ijk=_triple(np.where(in_plane, kept, 1)) if happens("low_resolution") else None,
        gamma_inverted=factor("gamma_inverted", config.gamma_range) if happens("gamma_inverted") else None,
        gamma=factor("gamma", config.gamma_range) if happens("gamma") else None,
        seed=seed,
    )


def _free_axes(spacing_mm: Sequence[float]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """The axes of rotation and of zoom that are allowed, shape (3,) each."""
    spacing = np.asarray(spacing_mm)
    if spacing.max() <= _FLAT_RATIO * spacing.min():
        return np.ones(3, bool), np.ones(3, bool)
    long = spacing == spacing.max()
    return long, ~long


def _triple(values: NDArray[np.floating]) -> Triple:
    i, j, k = values.tolist()
    return i, j, k
