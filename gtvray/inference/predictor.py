"""The network at work: fixed-size batches in, logits out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray

from gtvray.geometry import Volume
from gtvray.inference.backends.base import filled_batch
from gtvray.inference.backends.choose import open_backends
from gtvray.inference.backends.store import ConversionStore
from gtvray.inference.backends.torch import run_network
from gtvray.inference.case import CaseJob, run_to_end
from gtvray.inference.domain import out_of_domain
from gtvray.inference.locator import Locator, locator_of
from gtvray.inference.views import mean_of_views
from gtvray.models import Bundle
from gtvray.preprocessing import prepare


class Predictor:
    """A warm bundle, all its members at once, as it is and mirrored: the logits of these views are averaged.

    A batch is always filled up to the bundle's batch size, so a patch meets the same arithmetic whatever shares its
    batch: alone, among its own case's, or among other requests'.

    Args:
        bundle: the model; its inference settings name backend, precision and flips.
        threads: CPU threads in this process; None leaves torch's.
        device: "cpu" or a CUDA device.
        store: where converted networks are kept; the user's own by default.

    Raises:
        ConfigError: the bundle's settings do not go with the device.
        ResourceError: what its backend needs is not to be had here.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        threads: int | None = None,
        device: str = "cpu",
        store: ConversionStore | None = None,
    ) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self.bundle = bundle
        self._members = open_backends(bundle, torch.device(device), store)
        flips = bundle.inference.flips
        self._flips = [axes for count in range(len(flips) + 1) for axes in combinations(flips, count)]
        locating = locator_of(bundle)
        self._seeing = Predictor(locating, device=device, store=store) if locating is not None else None
        self._locator = Locator(self._seeing.bundle, self._seeing.forward) if self._seeing is not None else None

    @property
    def batch_size(self) -> int:
        """Patches a forward pass."""
        return self.bundle.inference.batch_size

    def begin(self, scan: Volume, where: object = None, *, mask_only: bool = False) -> CaseJob:
        """Prepare a scan: the box about its body, or all of it in mode `exhaustive`.

        Args:
            scan: CT in HU on any grid.
            where: what to name in an error.
            mask_only: as `CaseJob` has it.

        Raises:
            DataError: the scan is not a CT of a body.
        """
        bundle = self.bundle
        prepared = prepare(scan, bundle.preprocessing, where, whole=bundle.inference.mode == "exhaustive")
        unlike = out_of_domain(prepared, bundle.info.get("domain"), where)
        return CaseJob(
            prepared,
            bundle.preprocessing,
            bundle.inference,
            bundle.patch_ijk,
            mask_only=mask_only,
            out_of_domain=unlike,
            suspicion=self._locator.suspect(prepared) if self._locator is not None else None,
        )

    @property
    def view_count(self) -> int:
        """Answers that are averaged: members times flips."""
        return len(self._members) * len(self._flips)

    def views(self, channels: Sequence[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
        """Each view's logits of the tumour (b, i, j, k) of up to `batch_size` patches (c, i, j, k)."""
        batch = filled_batch(channels, self.batch_size)
        for axes in self._flips:
            mirrored = np.ascontiguousarray(np.flip(batch, tuple(axis + 2 for axis in axes))) if axes else batch
            for member in self._members:
                yield np.flip(member.run(mirrored), tuple(axis + 1 for axis in axes))[: len(channels)]

    def forward(self, channels: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Logits of the tumour (b, i, j, k) of up to `batch_size` patches (c, i, j, k)."""
        return mean_of_views(self.views(channels))

    def warm(self) -> None:
        """Run one empty batch, so that the first request does not pay for set-up."""
        if self._seeing is not None:
            self._seeing.warm()
        self.forward([np.zeros((self.bundle.preprocessing.channels, *self.bundle.patch_ijk), np.float32)])

    def run(self, job: CaseJob) -> None:
        """Answer every patch of a job."""
        run_to_end(job, self.forward, self.batch_size)

    def predict(self, scan: Volume, where: object = None) -> Volume:
        """The uint8 mask of a scan, on its own grid.

        Raises:
            DataError: the scan is not a CT of a body.
        """
        job = self.begin(scan, where, mask_only=True)
        self.run(job)
        return job.finish()


def forward_batch(
    network: torch.nn.Module,
    channels: Sequence[NDArray[np.float32]],
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype,
) -> NDArray[np.float32]:
    """Logits of the tumour (b, i, j, k) of at most `batch_size` patches (c, i, j, k); zeros fill the batch."""
    return run_network(network, filled_batch(channels, batch_size), device, dtype)[: len(channels)]
