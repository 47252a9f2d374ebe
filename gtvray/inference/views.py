"""The answers of several views to one patch, as one."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray


def mean_of_views(views: Iterable[NDArray[np.float32]]) -> NDArray[np.float32]:
    """The mean of arrays of one shape, summed one after the other in fp32: the order is part of the answer."""
    first, *others = views
    total = first.copy()
    for each in others:
        total += each
    return total / np.float32(1 + len(others))
