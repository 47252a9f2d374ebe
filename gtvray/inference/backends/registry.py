"""Backends that run networks: the protocol, the registry, and the choice from a bundle's inference settings.

To add one, write a module beside this one, add its name to `inference.backend` in the schema and its function to
`BACKENDS`; `tests/inference/test_backend_conformance.py` then covers it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from gtvray.inference.backends.openvino import open_openvino
from gtvray.inference.backends.store import ConversionStore, default_store
from gtvray.inference.backends.torch import open_torch

if TYPE_CHECKING:
    from gtvray.models import Bundle


class Backend(Protocol):
    """One network, ready to run; the logits of a row depend neither on the other rows nor on its position."""

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Tumour logits (b, i, j, k) of a full batch (b, c, i, j, k)."""


# A bundle, its member, the device and the store of converted networks to a network that is ready to run.
Opener = Callable[["Bundle", int, torch.device, ConversionStore], Backend]

BACKENDS: Mapping[str, Opener] = {"torch": open_torch, "openvino": open_openvino}


def open_backends(bundle: Bundle, device: torch.device, store: ConversionStore | None = None) -> list[Backend]:
    """Open a backend for each member of a bundle, with as many CPU threads as torch has in this process.

    There is no fallback to another backend: its masks would differ from those that were promoted.

    Args:
        bundle: its inference settings name backend and precision.
        device: "cpu" or a CUDA device.
        store: where converted networks are kept; the user's cache by default.

    Raises:
        ConfigError: the settings are not valid on the device.
        ResourceError: a requirement of the backend is not installed, or the CPU lacks it.
        FailureError: a converted network does not reproduce the trained one.
    """
    opener, store = BACKENDS[bundle.inference.backend], store or default_store()
    return [opener(bundle, member, device, store) for member in range(bundle.members)]


def filled_batch(channels: Sequence[NDArray[np.float32]], batch_size: int) -> NDArray[np.float32]:
    """At most `batch_size` patches (c, i, j, k) as a full batch (b, c, i, j, k), filled up with zeros."""
    batch = np.zeros((batch_size, *channels[0].shape), dtype=np.float32)
    for row, patch in zip(batch, channels, strict=False):
        row[:] = patch
    return batch
