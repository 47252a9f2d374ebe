"""The network at work: fixed-size batches in, probabilities out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from gtvray.geometry import Volume
from gtvray.inference.case import CaseJob
from gtvray.models import Bundle
from gtvray.preprocessing import prepare


class Predictor:
    """A warm bundle, all its members at once: their probabilities are averaged.

    A batch is always filled up to the bundle's batch size, so a patch meets the same arithmetic whatever shares its
    batch: alone, among its own case's, or among other requests'.

    Args:
        bundle: the model.
        threads: CPU threads torch may use in this process; None leaves them.
        device: "cpu" or a CUDA device.
    """

    def __init__(self, bundle: Bundle, *, threads: int | None = None, device: str = "cpu") -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self.bundle = bundle
        self._device = torch.device(device)
        self._members = [bundle.build_network(member).to(self._device) for member in range(bundle.members)]
        self._dtype = torch.bfloat16 if bundle.inference.precision == "bf16" else torch.float32

    @property
    def batch_size(self) -> int:
        """Patches a forward pass."""
        return self.bundle.inference.batch_size

    def begin(self, scan: Volume, where: object = None) -> CaseJob:
        """Prepare a scan.

        Raises:
            DataError: the scan is not a CT of a body.
        """
        prepared = prepare(scan, self.bundle.preprocessing, where)
        return CaseJob(prepared, self.bundle.preprocessing, self.bundle.inference, self.bundle.patch_ijk)

    def forward(self, channels: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Tumour probabilities (b, i, j, k) of up to `batch_size` patches (c, i, j, k)."""
        total, *others = (
            forward_batch(network, channels, self.batch_size, self._device, self._dtype) for network in self._members
        )
        # Summed member by member, in fp32: the order is part of the answer.
        for probabilities in others:
            total += probabilities
        return total / np.float32(len(self._members))

    def warm(self) -> None:
        """Run one empty batch, so that the first request does not pay for set-up."""
        self.forward([np.zeros((len(self.bundle.preprocessing.windows_hu), *self.bundle.patch_ijk), np.float32)])

    def predict(self, scan: Volume, where: object = None) -> Volume:
        """The uint8 mask of a scan, on its own grid.

        Raises:
            DataError: the scan is not a CT of a body.
        """
        job = self.begin(scan, where)
        run_to_end(job, self.forward, self.batch_size)
        return job.finish()


def forward_batch(
    network: torch.nn.Module,
    channels: Sequence[NDArray[np.float32]],
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype,
) -> NDArray[np.float32]:
    """Tumour probabilities (b, i, j, k) of at most `batch_size` patches (c, i, j, k); zeros fill the batch."""
    batch = np.zeros((batch_size, *channels[0].shape), dtype=np.float32)
    for row, patch in zip(batch, channels, strict=False):
        row[:] = patch
    with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        logits = network(torch.from_numpy(batch).to(device))
    probabilities: NDArray[np.float32] = torch.sigmoid(logits[: len(channels), 0].float()).cpu().numpy()
    return probabilities


def run_to_end(
    job: CaseJob, forward: Callable[[Sequence[NDArray[np.float32]]], NDArray[np.float32]], batch_size: int
) -> None:
    """Answer every patch of a job."""
    while job.remaining:
        patches = [job.take() for _ in range(min(batch_size, job.remaining))]
        for patch, probability in zip(patches, forward([p.channels for p in patches]), strict=True):
            job.put(patch.number, probability)
