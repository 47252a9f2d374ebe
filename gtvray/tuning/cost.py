"""Inference cost of a trial's network: latency and peak memory of a forward pass, as objectives of a sweep."""

from __future__ import annotations

import time
import weakref
from collections.abc import Sequence
from statistics import median
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from gtvray.config import Config, with_dotted
from gtvray.models import build_network
from gtvray.training import training_device, training_precision

LATENCY, PEAK = "latency_ms", "peak_mb"
_PASSES = 5


def measure_cost(config: Config, objectives: Sequence[str]) -> dict[str, float]:
    """Measure the objectives that do not depend on the training.

    Args:
        config: settings of the trial.
        objectives: names of the objectives of the sweep.

    Returns:
        `latency_ms`: median time of a forward pass for one patch, in ms, on the device of the worker; on the CPU if a
        trial has several workers. `peak_mb`: size of the weights, one patch, and the tensors that are alive at the peak
        of its forward pass, in MB (1e6 bytes), in fp32.
    """
    measured: dict[str, float] = {}
    if LATENCY in objectives:
        measured[LATENCY] = _latency_ms(config)
    if PEAK in objectives:
        measured[PEAK] = _peak_bytes(config) / 1e6
    return measured


def _network(config: Config) -> torch.nn.Module:
    preprocessing = config.preprocessing
    return build_network(
        config.network, preprocessing.channels, preprocessing.spacing_mm, config.training.patch_ijk
    ).eval()


def _latency_ms(config: Config) -> float:
    if config.training.use_gpu and config.training.num_workers > 1:
        # The process of such a trial has no GPU of its own, although torch may see those of its workers.
        config = with_dotted(config, {"training.use_gpu": False, "training.precision": "auto"})
    device = training_device(config)
    torch.set_num_threads(config.training.cpus_per_worker)
    network = _network(config).to(device)
    patch = torch.zeros(1, config.preprocessing.channels, *config.training.patch_ijk, device=device)
    times, precision = [], training_precision(config)
    with torch.inference_mode(), torch.autocast(device.type, precision, enabled=precision != torch.float32):
        for _ in range(1 + _PASSES):
            began = time.perf_counter()
            network(patch)
            if device.type == "cuda":
                torch.cuda.synchronize()
            times.append(1000 * (time.perf_counter() - began))
    # The first pass is a warm-up: it allocates memory and selects kernels.
    return median(times[1:])


class _LiveBytes(TorchDispatchMode):
    """Tracks the total size of live tensors in bytes, and its peak."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # of torch
        self.live, self.peak = 0, 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count its outputs."""
        outputs = function(*args, **(kwargs or {}))
        for output in tree_flatten(outputs)[0]:
            if isinstance(output, torch.Tensor):
                self._count(output.untyped_storage())
        return outputs

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live -= size


def _peak_bytes(config: Config) -> int:
    # On the meta device tensors have sizes and no memory.
    with torch.device("meta"):
        network = _network(config)
        patch = torch.empty(1, config.preprocessing.channels, *config.training.patch_ijk)
    weights = sum(parameter.numel() * 4 for parameter in network.parameters())
    with torch.no_grad(), _LiveBytes() as counted:
        network(patch)
    return int(weights + patch.untyped_storage().nbytes() + counted.peak)
