"""From a bundle's inference settings to what runs it; nothing falls back in silence, for the mask would be another."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from gtvray.errors import ConfigError
from gtvray.inference.backends.base import Backend
from gtvray.inference.backends.openvino import OpenVinoBackend
from gtvray.inference.backends.store import ConversionStore, default_store
from gtvray.inference.backends.torch import TorchBackend

if TYPE_CHECKING:
    from gtvray.models import Bundle


def open_backends(bundle: Bundle, device: torch.device, store: ConversionStore | None = None) -> list[Backend]:
    """A backend for each member of a bundle, with as many CPU threads as torch has in this process.

    Args:
        bundle: its inference settings name backend and precision.
        device: "cpu" or a CUDA device.
        store: where converted networks are kept; the user's own by default.

    Raises:
        ConfigError: the settings do not go with the device.
        ResourceError: what the backend needs is not installed here, or not in this CPU.
        FailureError: a converted network does not answer as the trained one.
    """
    settings = bundle.inference
    if settings.backend == "torch":
        return [
            TorchBackend(bundle.build_network(member), device, settings.precision, settings.compiled)
            for member in range(bundle.members)
        ]
    if device.type != "cpu":
        raise ConfigError(
            "the OpenVINO backend runs on CPUs",
            expected="serving.gpus_per_replica=0",
            found=str(device),
            do="promote this model with inference.backend=torch for GPUs",
        )
    store, threads = store or default_store(), torch.get_num_threads()
    return [OpenVinoBackend(bundle, member, threads, store) for member in range(bundle.members)]
