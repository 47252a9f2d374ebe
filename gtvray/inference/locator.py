"""A bundle's locator at work: a model that sees the body at a coarser spacing and tells where to look closely.

It is given the prepared scan, not the scan itself: to bring that to a coarser grid costs next to nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from gtvray.inference.case import CaseJob, run_to_end
from gtvray.inference.localise import Suspicion, suspect_above
from gtvray.models import Bundle
from gtvray.preprocessing import Prepared, prepare

Forward = Callable[[Sequence[NDArray[np.float32]]], NDArray[np.float32]]


class Locator:
    """Suspects tumour in prepared scans; any number of threads may ask, one at a time is answered.

    Args:
        bundle: the locator's, as `locator_of` gives it.
        forward: its network: patches (c, i, j, k) to logits (b, i, j, k).
    """

    def __init__(self, bundle: Bundle, forward: Forward) -> None:
        self._bundle, self._forward = bundle, forward
        # A network of OpenVINO's takes one batch at a time.
        self._one_at_a_time = threading.Lock()

    def suspect(self, prepared: Prepared) -> Suspicion:
        """Where tumour is suspected in a scan.

        Args:
            prepared: the scan as the bundle's own network sees it.
        """
        bundle = self._bundle
        coarse = prepare(prepared.hu, bundle.preprocessing)
        job = CaseJob(coarse, bundle.preprocessing, bundle.inference, bundle.patch_ijk)
        with self._one_at_a_time:
            run_to_end(job, self._forward, bundle.inference.batch_size)
        return Suspicion(job.finish().array > 0, float(job.probability().max()))


def locator_of(bundle: Bundle) -> Bundle | None:
    """The model that is to tell where to look closely, if inference asks for one and the bundle has one.

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
