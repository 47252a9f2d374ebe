"""The patches of one scan: their positions, the input of the network, and the order in which they run. Torch-free."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gtvray.config import InferenceConfig, PreprocessingConfig
from gtvray.geometry import Box
from gtvray.inference.schedule import PatchGrid, gaussian_weights
from gtvray.preprocessing import AIR_HU, Prepared, to_channels


@dataclass(frozen=True)
class Patch:
    """A patch to run.

    Attributes:
        number: position in the order in which the patches of its scan are run.
        channels: input of the network, float32 (c, i, j, k).
    """

    number: int
    channels: NDArray[np.float32]


class ScanPatches:
    """A prepared scan, padded with air as far as its patches reach.

    Args:
        prepared: the scan on the prepared grid.
        preprocessing, inference, patch_ijk: settings of the bundle.

    Attributes:
        grid: the patches, on the padded grid.
        weights: weight of each voxel of a patch, (i, j, k).
        shape: of the padded grid.
        inner: box of the prepared scan in the padded grid.
    """

    def __init__(
        self,
        prepared: Prepared,
        preprocessing: PreprocessingConfig,
        inference: InferenceConfig,
        patch_ijk: tuple[int, int, int],
    ) -> None:
        shape, rule = prepared.hu.shape, inference.sliding_window
        # The patches of a localised search coincide with those of `exhaustive`, so that both give the same mask.
        extent = (prepared.extent if inference.mode == "localised" else None) or Box.whole(shape)
        self.grid, frame = PatchGrid.reaching(shape, extent, patch_ijk, inference.overlap, rule)
        self.weights = gaussian_weights(patch_ijk, rule)
        self.shape = frame.shape
        self.inner = Box.whole(shape).moved(frame.start_ijk)
        pad = [(-low, high - n) for n, low, high in zip(shape, frame.start_ijk, frame.stop_ijk, strict=True)]
        self._hu = _padded_with_air(prepared.hu.array, pad)
        self._mirrored = None if prepared.mirrored is None else _padded_with_air(prepared.mirrored, pad)
        self._windows_hu, self._body_above_hu = preprocessing.windows_hu, preprocessing.body_threshold_hu

    def channels(self, number: int) -> NDArray[np.float32]:
        """Input of the network (c, i, j, k) for a patch of the grid."""
        slices = self.grid.slices(number)
        mirrored = None if self._mirrored is None else self._mirrored[slices]
        return to_channels(self._hu[slices], self._windows_hu, mirrored)

    def on_body(self) -> list[int]:
        """Patches that contain a voxel of the body, in the order of the grid."""
        return self.grid.touching(self._hu > self._body_above_hu)


class PatchIterator:
    """Hand out patches of a scan in the order they were added, and match each answer to its patch.

    Args:
        patches: the scan's patches.
    """

    def __init__(self, patches: ScanPatches) -> None:
        self._patches = patches
        self._waiting: deque[int] = deque()
        self._running: deque[int] = deque()
        self._taken = self._answered = 0

    @property
    def remaining(self) -> int:
        """Patches added and not taken yet."""
        return len(self._waiting)

    @property
    def total(self) -> int:
        """Patches added so far."""
        return self._taken + len(self._waiting)

    @property
    def done(self) -> bool:
        """Whether every patch that was added has been answered."""
        return not self._waiting and not self._running

    def add(self, numbers: Sequence[int]) -> None:
        """Append patches of the grid."""
        self._waiting.extend(numbers)

    def take(self) -> Patch:
        """Return the next patch.

        Raises:
            IndexError: none remains.
        """
        number = self._waiting.popleft()
        self._running.append(number)
        self._taken += 1
        return Patch(self._taken - 1, self._patches.channels(number))

    def answer(self, number: int) -> int:
        """Mark a patch as answered and return its number in the grid; patches are answered in the order taken."""
        assert number == self._answered, "answers come in the order of the patches"
        self._answered += 1
        return self._running.popleft()


def _padded_with_air(hu: NDArray[np.int16], pad: list[tuple[int, int]]) -> NDArray[np.int16]:
    return np.pad(hu, pad, constant_values=AIR_HU) if np.any(pad) else hu
