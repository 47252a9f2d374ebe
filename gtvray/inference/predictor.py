"""The predictor: a loaded bundle that segments scans."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray

from gtvray.geometry import Volume
from gtvray.inference.aggregate import mean_of_views
from gtvray.inference.backends.registry import filled_batch, open_backends
from gtvray.inference.backends.store import ConversionStore
from gtvray.inference.backends.torch import run_network
from gtvray.inference.domain import out_of_domain
from gtvray.inference.localise import Suspicion
from gtvray.inference.locator import Locator, locator_of
from gtvray.inference.request import SegmentationRequest, run_patches
from gtvray.models import Bundle
from gtvray.preprocessing import Prepared, prepare


class Predictor:
    """A loaded bundle: all its members, each on the patches as they are and on their mirror images.

    The logits of these views are averaged. A batch is always filled up to the bundle's batch size, so the logits of a
    patch do not depend on the patches that share its batch.

    Args:
        bundle: the model; its inference settings name backend, precision and flips.
        threads: CPU threads in this process; None keeps torch's setting.
        device: "cpu" or a CUDA device.
        store: where converted networks are kept; the user's cache by default.

    Raises:
        ConfigError: the bundle's settings are not valid on the device.
        ResourceError: a requirement of its backend is missing on this machine.

    Attributes:
        bundle: the model.
        locator: finds suspected tumour for mode `localised`; None in other modes, or if the bundle has none.
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
        self._locating = Predictor(locating, device=device, store=store) if locating is not None else None
        self.locator = Locator(self._locating.bundle, self._locating.forward) if self._locating is not None else None

    @property
    def batch_size(self) -> int:
        """Patches a forward pass."""
        return self.bundle.inference.batch_size

    @property
    def view_count(self) -> int:
        """Views whose logits are averaged: members times flips."""
        return len(self._members) * len(self._flips)

    def begin(self, scan: Volume, where: object = None, *, mask_only: bool = False) -> SegmentationRequest:
        """Prepare a scan, and run the locator if the bundle has one.

        Args:
            scan: CT in HU on any grid.
            where: name of the scan in errors.
            mask_only: see `SegmentationRequest`.

        Raises:
            DataError: the scan is not a CT of a body.
        """
        prepared, reasons = self.prepare_checked(scan, where)
        suspicion = self.locator.suspect(prepared) if self.locator is not None else None
        return self.request(prepared, mask_only=mask_only, out_of_domain=reasons, suspicion=suspicion)

    def prepare_checked(self, scan: Volume, where: object = None) -> tuple[Prepared, tuple[str, ...]]:
        """Prepare a scan, and return it with the reasons why it differs from the model's intended input.

        Raises:
            DataError: the scan is not a CT of a body.
        """
        prepared = self.prepare(scan, where)
        return prepared, out_of_domain(prepared, self.bundle.info.get("domain"), where)

    def prepare(self, scan: Volume, where: object = None) -> Prepared:
        """Prepare a scan: the box of the body, or the full extent in mode `exhaustive`.

        Raises:
            DataError: the values are not HU, or the scan contains no body.
        """
        full_extent = self.bundle.inference.mode == "exhaustive"
        return prepare(scan, self.bundle.preprocessing, where, full_extent=full_extent)

    def request(
        self,
        prepared: Prepared,
        *,
        mask_only: bool = False,
        out_of_domain: tuple[str, ...] = (),
        suspicion: Suspicion | None = None,
    ) -> SegmentationRequest:
        """Return the request whose patches the networks have to run.

        Args:
            prepared: the scan, from `prepare`.
            mask_only: see `SegmentationRequest`.
            out_of_domain: see `SegmentationRequest`.
            suspicion: of the `locator`, if there is one.
        """
        bundle = self.bundle
        return SegmentationRequest(
            prepared,
            bundle.preprocessing,
            bundle.inference,
            bundle.patch_ijk,
            mask_only=mask_only,
            out_of_domain=out_of_domain,
            suspicion=suspicion,
        )

    def views(self, channels: Sequence[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
        """Tumour logits (b, i, j, k) of up to `batch_size` patches (c, i, j, k), one array a view."""
        batch = filled_batch(channels, self.batch_size)
        for axes in self._flips:
            mirrored = np.ascontiguousarray(np.flip(batch, tuple(axis + 2 for axis in axes))) if axes else batch
            for member in self._members:
                yield np.flip(member.run(mirrored), tuple(axis + 1 for axis in axes))[: len(channels)]

    def forward(self, channels: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Mean tumour logits (b, i, j, k) of up to `batch_size` patches (c, i, j, k)."""
        return mean_of_views(self.views(channels))

    def warm(self) -> None:
        """Run one empty batch, so that the first request does not pay for initialisation."""
        if self._locating is not None:
            self._locating.warm()
        self.forward([np.zeros((self.bundle.preprocessing.channels, *self.bundle.patch_ijk), np.float32)])

    def run(self, request: SegmentationRequest) -> None:
        """Run every patch of a request."""
        run_patches(request, self.forward, self.batch_size)

    def predict(self, scan: Volume, where: object = None) -> Volume:
        """Segment a scan: the uint8 mask on its own grid.

        Raises:
            DataError: the scan is not a CT of a body.
        """
        request = self.begin(scan, where, mask_only=True)
        self.run(request)
        return request.mask()


def forward_batch(
    network: torch.nn.Module,
    channels: Sequence[NDArray[np.float32]],
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype,
) -> NDArray[np.float32]:
    """Tumour logits (b, i, j, k) of at most `batch_size` patches (c, i, j, k); zeros fill up the batch."""
    return run_network(network, filled_batch(channels, batch_size), device, dtype)[: len(channels)]
