"""A bundle's networks under other inference settings: what a benchmark proposes, and the gate accepts or not."""

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
    """A backend on the golden cases of this host.

    Attributes:
        backend, precision: as in the inference settings.
        seconds: for all golden cases, warm; None where it does not run here.
        worst_dice: of its masks with the golden ones; None where it does not run here.
        why_not: why it does not.
    """

    backend: str
    precision: str
    seconds: float | None
    worst_dice: float | None
    why_not: str | None = None

    @property
    def alike(self) -> bool:
        """Whether its masks are those of the promotion."""
        return self.worst_dice is not None and self.worst_dice >= REPRODUCED_DICE


def with_inference(bundle: Bundle, changes: Mapping[str, Any], bundles: Path, locator: Bundle | None = None) -> Bundle:
    """The bundle itself where nothing changes; else its networks as a bundle of their own, with another digest.

    Args:
        bundle: stays as it is.
        changes: inference setting -> value.
        bundles: folder that the new one is written into.
        locator: the model that is to tell where to look closely, instead of the one that the bundle may have.

    Raises:
        ConfigError: a setting that is not there, a value it does not take, or a locator that would not be asked.
    """
    inference = build(InferenceConfig, {**bundle.inference.model_dump(mode="json"), **changes}, "inference")
    if locator is not None and inference.mode != "localised":
        raise ConfigError(
            "only localised inference asks a locator",
            expected="inference.mode=localised",
            found=f"inference.mode={inference.mode}",
            do="set it as well, or leave the locator out",
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
    """Every backend and precision for CPUs on the bundle's golden cases, the fastest that gives its masks first.

    Nothing is changed by it: the fastest may be proposed, and the gate decides.
    """
    timings = [_timed(bundle, golden, threads, **candidate) for candidate in _CANDIDATES]
    return sorted(timings, key=lambda timing: (not timing.alike, timing.seconds or float("inf")))


def _timed(bundle: Bundle, golden: Path, threads: int, backend: str, precision: str) -> BackendTiming:
    update = {"backend": backend, "precision": precision, "compiled": False}
    try:
        predictor = Predictor(replace(bundle, inference=bundle.inference.model_copy(update=update)), threads=threads)
    except (ConfigError, ResourceError) as error:
        return BackendTiming(backend, precision, None, None, error.what)
    predictor.warm()
    began = time.perf_counter()
    results = reproduce(golden, predictor)
    seconds = time.perf_counter() - began
    return BackendTiming(backend, precision, seconds, min(result.dice for result in results))
