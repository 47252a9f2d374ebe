"""Detection of copies of a scan: identical voxels in another file, or nearly identical after processing.

A scan's digest covers its voxels in RAS order, rounded to integer HU, and so does not depend on compression, data type
or order of axes. Its profile is the distribution of mass from back to front in every slab from feet to head. Mass is
linear in HU, so that a copy that was resampled, cropped, mirrored or made noisy keeps the profile, while profiles of
different patients differ.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from gtvray.datasets.checks.body import AXES, Sketch
from gtvray.geometry import Volume

# Copies of real scans with noise of 10 HU, cropped by 10 voxels a side or resampled to 2.5-5 mm are within 0.029.
# The closest of 496 pairs of phantoms, which have similar builds, differ by 0.033, the closest of 60 patients by 0.088.
ALIKE_BELOW = 0.03
# Outside of this range noise, metal or a clipped range dominate.
_MASS_HU = (-900, 1500)
# Bins of 12.5 mm from back to front about the slice's centre of mass; the outer bins hold the remainder.
_EDGES_MM = np.array([-400.0, *np.arange(-100, 101, 12.5), 400.0])
_STEP_MM = 2.5
# A moving average over 12.5 mm makes profiles of 1 mm and of 5 mm slices comparable.
_SMOOTH_STEPS = 5
# Least overlap along the body, as a share of the shorter scan and in mm, so that cropped copies can be compared.
_OVERLAP_SHARE, _OVERLAP_MM = 0.6, 40.0

Profile = NDArray[np.float32]


def voxel_digest(volume: Volume) -> str:
    """Compute the SHA-256 of shape and voxels, in RAS order and rounded to integers."""
    upright = volume.reoriented(AXES).array
    digest = hashlib.sha256(repr(upright.shape).encode())
    for k in range(upright.shape[2]):
        section = upright[:, :, k].T
        if section.dtype.kind == "f":
            section = np.rint(section)
        digest.update(np.clip(section, -32768, 32767).astype("<i2", order="C").data)
    return digest.hexdigest()


def body_profile(sketch: Sketch) -> Profile:
    """Compute mass from back to front (rows) in slabs of 2.5 mm from feet to head (columns), in arbitrary units."""
    low, high = _MASS_HU
    lines = np.array(
        [(np.clip(sketch.hu[:, :, k].astype(np.float32), low, high) - low).sum(axis=0) for k in _slices(sketch)]
    ).T
    lines *= sketch.sample_cm2 * 1e-5
    y_mm = np.arange(len(lines)) * sketch.spacing_mm[1]
    centres_mm = y_mm @ lines / np.maximum(lines.sum(axis=0), 1e-9)
    sums = np.concatenate([np.zeros((1, lines.shape[1])), np.cumsum(lines, axis=0)])
    rims_mm = (np.arange(len(sums)) - 0.5) * sketch.spacing_mm[1]
    bins = [np.diff(np.interp(_EDGES_MM + c, rims_mm, line)) for c, line in zip(centres_mm, sums.T, strict=True)]
    return _in_steps(np.array(bins).T, sketch.spacing_mm[2])


def find_alike(profiles: dict[str, Profile], others: dict[str, Profile] | None = None) -> Iterator[tuple[str, str]]:
    """Find pairs of cases whose profiles nearly agree at some offset along the body.

    Args:
        profiles: profile of each case.
        others: profiles to compare them with; by default the profiles are compared with each other.

    Yields:
        (case, case of `others`); without `others`, the earlier case is second.
    """
    names, rest = list(profiles), list(profiles if others is None else others)
    known = profiles if others is None else others
    if not names or not rest:
        return
    longest = max(profile.shape[1] for profile in [*profiles.values(), *known.values()])
    stack = _Spectra([known[name] for name in rest], 2 * longest)
    for number, name in enumerate(names):
        distances = stack.distances(profiles[name])
        upto = number if others is None else len(rest)
        yield from ((name, rest[other]) for other in np.flatnonzero(distances[:upto] < ALIKE_BELOW))


class _Spectra:
    """Profiles in Fourier space, where all offsets are compared at once.

    Args:
        profiles: the profiles to compare with.
        length: length of the transform, twice that of the longest profile, so that nothing wraps around.
    """

    def __init__(self, profiles: list[Profile], length: int) -> None:
        self._length = length
        self._sizes = np.array([profile.shape[1] for profile in profiles])
        self._values = np.array([np.fft.rfft(profile, length) for profile in profiles])
        self._squares = np.array([np.fft.rfft((profile**2).sum(axis=0), length) for profile in profiles])
        self._there = np.array([np.fft.rfft(np.ones(size), length) for size in self._sizes])

    def distances(self, profile: Profile) -> NDArray[np.float64]:
        """Compute the least relative RMS difference to each profile over all offsets with enough overlap."""
        size = profile.shape[1]
        values, squares, there = (
            np.conj(np.fft.rfft(array, self._length)) for array in (profile, (profile**2).sum(axis=0), np.ones(size))
        )
        both = np.fft.irfft((self._values * values).sum(axis=1), self._length)
        energy = np.fft.irfft(self._squares * there + self._there * squares, self._length)
        overlap = np.fft.irfft(self._there * there, self._length)
        enough = np.maximum(_OVERLAP_SHARE * np.minimum(self._sizes, size), _OVERLAP_MM / _STEP_MM)
        relative = np.sqrt(np.maximum(energy - 2 * both, 0) / np.maximum(energy, 1e-9))
        return np.asarray(np.where(overlap >= enough[:, None], relative, np.inf).min(axis=1))


def _slices(sketch: Sketch) -> range:
    return range(sketch.hu.shape[2])


def _in_steps(rows: NDArray[np.float64], slice_mm: float) -> Profile:
    """Resample rows over slices to smoothed steps of 2.5 mm; at least one step."""
    edges_mm = np.arange(rows.shape[1] + 1) * slice_mm
    steps_mm = np.arange(max(2, int(edges_mm[-1] / _STEP_MM) + 1)) * _STEP_MM
    total = np.concatenate([np.zeros((len(rows), 1)), np.cumsum(rows, axis=1) * slice_mm], axis=1)
    slabs = np.array([np.diff(np.interp(steps_mm, edges_mm, row)) for row in total]) / _STEP_MM
    width = min(_SMOOTH_STEPS, slabs.shape[1])
    return np.asarray([np.convolve(row, np.ones(width) / width, mode="valid") for row in slabs], dtype=np.float32)
