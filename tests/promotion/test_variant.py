"""Bundles with changed inference settings, and timings of the backends."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from gtvray.errors import ConfigError
from gtvray.geometry import Volume
from gtvray.models import Bundle
from gtvray.promotion import time_backends, with_inference

from ..golden_cases import made_golden


def _scan() -> Volume:
    hu = np.full((24, 24, 24), 40, np.int16)
    hu[:3] = -1000
    return Volume(hu, np.diag([-4.0, -4, 4, 1]))


def test_changed_settings_make_a_new_bundle_with_the_same_networks(
    make_bundle: Callable[[int], Bundle], tmp_path: Path
) -> None:
    bundle = make_bundle(0)
    assert with_inference(bundle, {}, tmp_path) is bundle
    assert with_inference(bundle, {"threshold": bundle.inference.threshold}, tmp_path) is bundle
    variant = with_inference(bundle, {"backend": "openvino", "precision": "bf16"}, tmp_path)
    assert variant.digest != bundle.digest
    assert (variant.inference.backend, variant.inference.precision) == ("openvino", "bf16")
    assert variant.info == {**bundle.info, "derived_from": bundle.digest}
    assert with_inference(bundle, {"backend": "openvino", "precision": "bf16"}, tmp_path).digest == variant.digest
    patch = torch.rand(1, 1, 16, 16, 16)
    with torch.no_grad():
        assert torch.equal(variant.build_network()(patch), bundle.build_network()(patch))
    with pytest.raises(ConfigError):
        with_inference(bundle, {"backend": "abacus"}, tmp_path)


def test_backends_that_do_not_reproduce_the_masks_are_last(
    make_bundle: Callable[[int], Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GTVRAY_CACHE", str(tmp_path / "cache"))
    bundle = make_bundle(0)
    timings = time_backends(bundle, made_golden(tmp_path / "golden", bundle, [_scan()]), 1)
    assert sorted((timing.backend, timing.precision) for timing in timings) == [
        (backend, precision) for backend in ("openvino", "torch") for precision in ("bf16", "fp32")
    ]
    (own,) = [timing for timing in timings if (timing.backend, timing.precision) == ("torch", "fp32")]
    assert own.alike
    assert own.worst_dice == 1.0
    alike = [timing.alike for timing in timings]
    assert alike == sorted(alike, reverse=True)
    for timing in timings:
        assert (timing.seconds is None) == (timing.why_not is not None)
