"""Candidate bundles with changed inference settings, and timings of the backends for choosing these settings."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gtvray.config import InferenceConfig, build
from gtvray.errors import ConfigError, ResourceError
from gtvray.evaluation import REPRODUCED_DICE, reproduce
from gtvray.inference import Predictor
from gtvray.models import Bundle, weights_of, write_bundle

_CANDIDATES = tuple(
    {"backend": backend, "precision": precision} for backend in ("torch", "openvino") for precision in ("fp32", "bf16")
)


@dataclass(frozen=True)
class BackendTiming:
    """Time and agreement of a backend on a model's golden cases on this host.

    Attributes:
        backend, precision: as in the inference settings.
        seconds: time for all golden cases after a warm-up; None if the backend does not run here.
        worst_dice: lowest DSC between its masks and the golden masks; None if the backend does not run here.
        why_not: the reason why the backend does not run here.
    """

    backend: str
    precision: str
    seconds: float | None
    worst_dice: float | None
    why_not: str | None = None

    @property
    def alike(self) -> bool:
        """Whether its masks reproduce those of the promotion."""
        return self.worst_dice is not None and self.worst_dice >= REPRODUCED_DICE


def with_inference(bundle: Bundle, changes: Mapping[str, Any], bundles: Path, locator: Bundle | None = None) -> Bundle:
    """Write a bundle with the same networks and changed inference settings; without changes return the bundle.

    Args:
        bundle: the original; it is not modified.
        changes: inference setting -> value.
        bundles: folder that the new bundle is written to.
        locator: bundle that localises the tumour on a coarser grid; replaces the locator of the bundle, if any.

    Raises:
        ConfigError: an unknown setting, an invalid value, or a locator without localised inference.
    """
    inference = build(InferenceConfig, {**bundle.inference.model_dump(mode="json"), **changes}, "inference")
    if locator is not None and inference.mode != "localised":
        raise ConfigError(
            "a locator is used by localised inference only",
            expected="inference.mode=localised",
            found=f"inference.mode={inference.mode}",
            do="set inference.mode=localised, or omit the locator",
        )
    if inference == bundle.inference and locator is None:
        return bundle
    settings = json.dumps([inference.model_dump(mode="json"), locator and locator.digest], sort_keys=True)
    name = f"{bundle.digest[:12]}-{hashlib.sha256(settings.encode()).hexdigest()[:8]}"
    return write_bundle(
        bundles / name,
        weights=[weights_of(bundle.build_network(member)) for member in range(bundle.members)],
        preprocessing=bundle.preprocessing,
        network=bundle.network,
        inference=inference,
        patch_ijk=bundle.patch_ijk,
        info={**bundle.info, "derived_from": bundle.digest},
        locator=locator or bundle.locator,
    )


def time_backends(bundle: Bundle, golden: Path, threads: int) -> list[BackendTiming]:
    """Time every CPU backend and precision on the bundle's golden cases; the fastest that reproduces them is first.

    The bundle is not changed: a backend is only adopted through the gate.
    """
    timings = [_time_backend(bundle, golden, threads, **candidate) for candidate in _CANDIDATES]
    return sorted(timings, key=lambda timing: (not timing.alike, timing.seconds or float("inf")))


def _time_backend(bundle: Bundle, golden: Path, threads: int, backend: str, precision: str) -> BackendTiming:
    update = {"backend": backend, "precision": precision, "compiled": False}
    try:
        predictor = Predictor(replace(bundle, inference=bundle.inference.model_copy(update=update)), threads=threads)
    except (ConfigError, ResourceError) as error:
        return BackendTiming(backend, precision, None, None, error.what)
    predictor.warm()
    start = time.perf_counter()
    results = reproduce(golden, predictor)
    seconds = time.perf_counter() - start
    return BackendTiming(backend, precision, seconds, min(result.dice for result in results))
