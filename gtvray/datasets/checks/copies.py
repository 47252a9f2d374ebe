"""Finding the same scan twice: the same voxels in another file, or nearly the same after some treatment.

A scan's digest is taken over its voxels in one orientation, rounded to whole HU, so neither compression nor data type
nor the order of axes matters. Its profile tells for every slab, from feet to head, how mass is spread from back to
front. Mass is linear in HU, so a copy that was resampled, cropped, mirrored or made noisy keeps the profile; another
patient does not have it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from gtvray.datasets.checks.body import AXES, Sketch
from gtvray.geometry import Volume

# Copies of real scans with noise of 10 HU, cropped by 10 voxels a side or resampled to 2.5-5 mm lie 0.029 apart at
# most; the nearest of 496 pairs of phantoms, which are of one build, 0.033; the nearest two of 60 patients 0.088.
ALIKE_BELOW = 0.03
# Below and above, HU say nothing about mass that noise, metal or a cut range could not change.
_MASS_HU = (-900, 1500)
# Bins of 12.5 mm from back to front about the slice's centre of mass; the outer ones take the rest.
_EDGES_MM = np.array([-400.0, *np.arange(-100, 101, 12.5), 400.0])
_STEP_MM = 2.5
# A sliding mean over 12.5 mm makes profiles of slices of 1 and of 5 mm alike.
_SMOOTH_STEPS = 5
# A crop along the body leaves at least this much to compare, as a share of the shorter scan and in mm.
_OVERLAP_SHARE, _OVERLAP_MM = 0.6, 40.0

Profile = NDArray[np.float32]


def voxel_digest(volume: Volume) -> str:
    """Sha256 over shape and voxels, in RAS order and whole numbers."""
    upright = volume.reoriented(AXES).array
    digest = hashlib.sha256(repr(upright.shape).encode())
    for k in range(upright.shape[2]):
        section = upright[:, :, k].T
        if section.dtype.kind == "f":
            section = np.rint(section)
        digest.update(np.clip(section, -32768, 32767).astype("<i2", order="C").data)
    return digest.hexdigest()


def body_profile(seen: Sketch) -> Profile:
    """Mass from back to front (rows) in every slab of 2.5 mm from feet to head (columns); no unit that matters."""
    low, high = _MASS_HU
    lines = np.array(
        [(np.clip(seen.hu[:, :, k].astype(np.float32), low, high) - low).sum(axis=0) for k in _slices(seen)]
    ).T
    lines *= seen.sample_cm2 * 1e-5
    y_mm = np.arange(len(lines)) * seen.spacing_mm[1]
    centres_mm = y_mm @ lines / np.maximum(lines.sum(axis=0), 1e-9)
    sums = np.concatenate([np.zeros((1, lines.shape[1])), np.cumsum(lines, axis=0)])
    rims_mm = (np.arange(len(sums)) - 0.5) * seen.spacing_mm[1]
    bins = [np.diff(np.interp(_EDGES_MM + c, rims_mm, line)) for c, line in zip(centres_mm, sums.T, strict=True)]
    return _in_steps(np.array(bins).T, seen.spacing_mm[2])


def find_alike(profiles: dict[str, Profile], others: dict[str, Profile] | None = None) -> Iterator[tuple[str, str]]:
    """Pairs of cases whose profiles are nearly the same somewhere along the body.

    Args:
        profiles: by case.
        others: to compare them with; by default each other.

    Yields:
        (case, case of `others`); among each other, the earlier case second.
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
    """Profiles in Fourier space, where all offsets of a comparison cost as much as one.

    Args:
        profiles: to compare with.
        length: of the transform: twice that of the longest profile, so that nothing wraps around.
    """

    def __init__(self, profiles: list[Profile], length: int) -> None:
        self._length = length
        self._sizes = np.array([profile.shape[1] for profile in profiles])
        self._values = np.array([np.fft.rfft(profile, length) for profile in profiles])
        self._squares = np.array([np.fft.rfft((profile**2).sum(axis=0), length) for profile in profiles])
        self._there = np.array([np.fft.rfft(np.ones(size), length) for size in self._sizes])

    def distances(self, profile: Profile) -> NDArray[np.float64]:
        """For each profile, the least relative root mean square difference over all offsets with enough overlap."""
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


def _slices(seen: Sketch) -> range:
    return range(seen.hu.shape[2])


def _in_steps(rows: NDArray[np.float64], slice_mm: float) -> Profile:
    """Rows over slices as rows over smoothed steps of 2.5 mm; at least one step."""
    edges_mm = np.arange(rows.shape[1] + 1) * slice_mm
    steps_mm = np.arange(max(2, int(edges_mm[-1] / _STEP_MM) + 1)) * _STEP_MM
    total = np.concatenate([np.zeros((len(rows), 1)), np.cumsum(rows, axis=1) * slice_mm], axis=1)
    slabs = np.array([np.diff(np.interp(steps_mm, edges_mm, row)) for row in total]) / _STEP_MM
    width = min(_SMOOTH_STEPS, slabs.shape[1])
    return np.asarray([np.convolve(row, np.ones(width) / width, mode="valid") for row in slabs], dtype=np.float32)
