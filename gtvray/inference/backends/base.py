"""What every backend is: a full batch of patches in, logits of the tumour out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Backend(Protocol):
    """One network, ready to run; a row's answer depends neither on the other rows nor on its place among them."""

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits of the tumour (b, i, j, k) of a full batch (b, c, i, j, k)."""


def filled_batch(channels: Sequence[NDArray[np.float32]], batch_size: int) -> NDArray[np.float32]:
    """At most `batch_size` patches (c, i, j, k) as a full batch (b, c, i, j, k); zeros fill it up."""
    batch = np.zeros((batch_size, *channels[0].shape), dtype=np.float32)
    for row, patch in zip(batch, channels, strict=False):
        row[:] = patch
    return batch
