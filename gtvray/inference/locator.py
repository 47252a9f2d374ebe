"""The locator of a bundle: a model on a coarser grid that reports where tumour is suspected.

It receives the prepared scan rather than the scan itself, which is cheap to resample to a coarser grid.
"""

from __future__ import annotations

import threading
from dataclasses import replace

from gtvray.inference.localise import Suspicion, suspect_above
from gtvray.inference.request import Forward, SegmentationRequest, run_patches
from gtvray.models import Bundle
from gtvray.preprocessing import Prepared, prepare


class Locator:
    """Find suspected tumour in prepared scans; safe to call from several threads, which run one after another.

    A scheduler that runs patches itself uses `begin`, `forward` and `suspicion` instead of `suspect`.

    Args:
        bundle: of the locator, as `locator_of` returns it.
        forward: its network: patches (c, i, j, k) to logits (b, i, j, k).

    Attributes:
        batch_size: patches a call of `forward`.
        forward: as given.
    """

    def __init__(self, bundle: Bundle, forward: Forward) -> None:
        self._bundle, self.forward = bundle, forward
        self.batch_size = bundle.inference.batch_size
        # An OpenVINO request accepts one batch at a time.
        self._lock = threading.Lock()

    def begin(self, prepared: Prepared) -> SegmentationRequest:
        """Return the request whose patches the locator's network has to run.

        Args:
            prepared: the scan as prepared for the bundle that the locator belongs to.
        """
        bundle = self._bundle
        coarse = prepare(prepared.hu, bundle.preprocessing)
        return SegmentationRequest(coarse, bundle.preprocessing, bundle.inference, bundle.patch_ijk)

    def suspicion(self, request: SegmentationRequest) -> Suspicion:
        """The suspicion of a request of `begin` that is done, on the grid of its prepared scan."""
        return Suspicion(request.mask().array > 0, float(request.probability().max()))

    def suspect(self, prepared: Prepared) -> Suspicion:
        """Run the locator on a scan.

        Args:
            prepared: the scan as prepared for the bundle that the locator belongs to.
        """
        request = self.begin(prepared)
        with self._lock:
            run_patches(request, self.forward, self.batch_size)
        return self.suspicion(request)


def locator_of(bundle: Bundle) -> Bundle | None:
    """The locator's bundle, ready to run, or None where the mode does not use one or the bundle has none.

    It runs on the backend and in the precision of the bundle it belongs to, and marks what it suspects.
    """
    if bundle.inference.mode != "localised" or bundle.locator is None:
        return None
    shared = {name: getattr(bundle.inference, name) for name in ("backend", "precision", "compiled")}
    own = bundle.locator.inference
    changes = {
        **shared,
        "mode": "body",
        "batch_size": 1,
        "flips": (),
        "keep_largest": False,
        "threshold": suspect_above(own.threshold),
    }
    return replace(bundle.locator, inference=own.model_copy(update=changes))
