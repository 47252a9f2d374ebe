"""Localised inference with a locator: the same mask from fewer patches, or the full body is run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gtvray.config import InferenceConfig
from gtvray.errors import ConfigError
from gtvray.geometry import Box, Volume
from gtvray.inference import Locator, Predictor, SegmentationRequest, Suspicion, locator_of
from gtvray.inference.localise import BEYOND, DROPPED_SHARE, EMPTY, UNSURE, RequiredPatches
from gtvray.inference.schedule import PatchGrid, gaussian_weights
from gtvray.models import Bundle
from gtvray.preprocessing import prepare

from ..bundles import random_bundle
from .synthetic import PATCH_IJK, PREPROCESSING, begin, body_scan, run_request, sees_bone, to_logits

TUMOUR = Box((28, 24, 20), (37, 31, 29))


def _request(scan: Volume, region: Box | None, highest: float = 0.9) -> SegmentationRequest:
    prepared = prepare(scan, PREPROCESSING)
    suspected = np.zeros(prepared.hu.shape, bool)
    if region is not None:
        suspected[region.slices] = True
    inference = InferenceConfig(mode="localised")
    return SegmentationRequest(prepared, PREPROCESSING, inference, PATCH_IJK, suspicion=Suspicion(suspected, highest))


def _where(scan: Volume, region: Box) -> Box:
    """Convert a box of the scan to its prepared grid."""
    prepared = prepare(scan, PREPROCESSING)
    marked = np.zeros(scan.shape, np.uint8)
    marked[region.slices] = 1
    found = Box.around(scan.with_array(marked).reoriented("RAS").array)
    assert found is not None
    assert prepared.crop is not None
    return found.moved(prepared.crop.start_ijk)


def test_correct_suspicion_gives_the_mask_of_body_mode() -> None:
    scan = body_scan(tumours=[TUMOUR])
    near, body = run_request(_request(scan, _where(scan, TUMOUR))), run_request(begin(scan, mode="body"))
    np.testing.assert_array_equal(near.mask().array, body.mask().array)
    assert near.mask().array.any()
    seen = near.coverage()
    assert (seen.mode, seen.fallback) == ("localised", None)
    assert seen.patches <= 27 < body.patches


def test_region_is_widened_once_and_then_the_body_is_run() -> None:
    rod = Box((6, 24, 20), (58, 31, 29))
    scan = body_scan(tumours=[rod])
    body = run_request(begin(scan, mode="body"))
    for part, fallback in ((Box((10, 24, 20), (52, 31, 29)), None), (Box((28, 26, 22), (30, 28, 24)), BEYOND)):
        request = run_request(_request(scan, _where(scan, part)))
        assert request.coverage().fallback == fallback
        np.testing.assert_array_equal(request.mask().array, body.mask().array)


@pytest.mark.parametrize(("highest", "reason"), [(0.1, EMPTY), (0.4, UNSURE)])
def test_unreliable_suspicion_falls_back_to_the_body(highest: float, reason: str) -> None:
    scan = body_scan(tumours=[TUMOUR])
    request, body = run_request(_request(scan, _where(scan, TUMOUR), highest)), run_request(begin(scan, mode="body"))
    assert (request.coverage().mode, request.coverage().fallback) == ("body", reason)
    assert request.probability().tobytes() == body.probability().tobytes()


def test_localised_patches_coincide_with_exhaustive_ones() -> None:
    """Positions of patches, on which logits depend, do not depend on where the box of the body starts."""
    region = Box((20, 20, 15), (29, 27, 22))
    wide = Box((-33, -7, -20), (60, 75, 61))
    scan = body_scan((48, 44, 40), [region]).padded(wide, -1000)

    def centred(channels: np.ndarray) -> np.ndarray:
        """Detects tumour in the centre of a patch only."""
        near = np.zeros(channels.shape[1:], np.float32)
        near[5:-5, 5:-5, 5:-5] = 1
        return near * sees_bone(channels)

    near = run_request(_request(scan, _where(scan, region.moved(wide.start_ijk))), centred)
    others = {mode: run_request(begin(scan, mode=mode), centred) for mode in ("exhaustive", "body")}
    masks = {mode: request.mask().array for mode, request in others.items()}
    assert near.coverage().fallback is None
    assert near.patches < others["body"].patches
    assert masks["exhaustive"].sum() > 100
    np.testing.assert_array_equal(near.mask().array, masks["exhaustive"])
    # The comparison can fail: patches of the body's box have other positions.
    assert (masks["body"] != masks["exhaustive"]).any()


def test_suspicion_without_voxels_falls_back_to_the_body() -> None:
    request = run_request(_request(body_scan(tumours=[TUMOUR]), None))
    assert (request.coverage().mode, request.coverage().fallback) == ("body", EMPTY)
    assert request.mask().array.any()


@pytest.mark.parametrize("seed", range(20))
def test_omitted_weights_are_bounded_at_every_voxel(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape, patch = tuple(rng.integers(30, 70, 3)), tuple(int(n) for n in rng.integers(8, 30, 3))
    grid, weights = PatchGrid.covering(shape, patch, 0.5), gaussian_weights(patch)
    body = sorted(rng.choice(len(grid), -(-len(grid) * 4 // 5), replace=False).tolist())
    region = np.zeros(shape, bool)
    low = rng.integers(0, np.asarray(shape) - 12)
    region[tuple(slice(s, s + n) for s, n in zip(low, rng.integers(1, 12, 3), strict=True))] = True
    required = RequiredPatches(grid, body, weights, (6.0, 6.0, 6.0))
    kept = required.around(region)
    every, some = np.zeros(shape), np.zeros(shape)
    for number in body:
        every[grid.slices(number)] += weights
        if number in kept:
            some[grid.slices(number)] += weights
    assert set(kept) <= set(body)
    assert (some[region] >= (1 - DROPPED_SHARE) * every[region] - 1e-4).all()
    assert not required.is_beyond(region, kept)
    # Patches without weight in the region are omitted.
    assert len(kept) <= len([n for n in body if grid.touching(region, (1, 1, 1)).count(n)])
    if kept:
        omitted = max(kept, key=lambda n: float(weights.max() * region[grid.slices(n)].sum()))
        assert required.is_beyond(region, [n for n in kept if n != omitted])


def _with_locator(folder: Path, **inference: Any) -> Bundle:
    locator = random_bundle(folder / "locator", seed=1)
    return random_bundle(folder / "bundle", locator=locator, inference=InferenceConfig(mode="localised", **inference))


def test_locator_inherits_backend_and_precision_of_its_bundle(tmp_path: Path) -> None:
    bundle = _with_locator(tmp_path, precision="bf16")
    locating = locator_of(bundle)
    assert locating is not None
    assert locating.digest == Bundle.load(tmp_path / "locator").digest
    assert (locating.inference.precision, locating.inference.mode) == ("bf16", "body")
    assert locator_of(random_bundle(tmp_path / "none")) is None


def test_locator_is_repeatable_and_on_the_prepared_grid(tmp_path: Path) -> None:
    bundle = _with_locator(tmp_path)
    locating = locator_of(bundle)
    assert locating is not None
    prepared = prepare(body_scan(tumours=[TUMOUR]), bundle.preprocessing)
    seeing = Locator(locating, lambda channels: to_logits(np.stack([sees_bone(each) for each in channels])))
    once, again = seeing.suspect(prepared), seeing.suspect(prepared)
    assert once.suspected.shape == prepared.hu.shape
    assert once.suspected.tobytes() == again.suspected.tobytes()
    bright = prepared.hu.array > 250
    assert (once.suspected & bright).sum() > 0.8 * bright.sum()


def test_predictor_with_a_locator_returns_mask_and_coverage(tmp_path: Path) -> None:
    predictor = Predictor(_with_locator(tmp_path), threads=1)
    predictor.warm()
    scan = body_scan(tumours=[TUMOUR])
    request = predictor.begin(scan)
    predictor.run(request)
    assert request.mask().same_grid(scan)
    assert request.coverage().mode in {"localised", "body"}


@pytest.mark.slow
def test_patches_of_a_locator_can_be_scheduled_like_those_of_any_request(tmp_path: Path) -> None:
    """Patch by patch, between those of another scan, they give the suspicion and the mask of `predict`."""
    predictor = Predictor(_with_locator(tmp_path), threads=1)
    locator = predictor.locator
    assert locator is not None
    scans = [body_scan(tumours=[TUMOUR]), body_scan((48, 44, 40), [Box((20, 20, 15), (29, 27, 22))])]
    prepared = [predictor.prepare(scan) for scan in scans]
    locating = [locator.begin(each) for each in prepared]
    while any(request.remaining for request in locating):
        for request in locating:
            if request.remaining:
                patch = request.take()
                request.put(patch.number, locator.forward([patch.channels])[0])
    for scan, each, request in zip(scans, prepared, locating, strict=True):
        suspicion, expected = locator.suspicion(request), locator.suspect(each)
        assert suspicion.suspected.tobytes() == expected.suspected.tobytes()
        assert suspicion.highest == expected.highest
        segmentation = predictor.request(each, suspicion=suspicion)
        predictor.run(segmentation)
        assert segmentation.mask().array.tobytes() == predictor.predict(scan).array.tobytes()


def test_derived_bundle_has_the_given_locator(tmp_path: Path) -> None:
    from gtvray.promotion import with_inference

    plain, locator = random_bundle(tmp_path / "plain"), random_bundle(tmp_path / "loc", seed=3)
    derived = with_inference(plain, {"mode": "localised"}, tmp_path / "out", locator)
    assert derived.locator is not None
    assert derived.locator.digest == locator.digest
    assert derived.inference.mode == "localised"
    # It is kept when another setting changes.
    with pytest.raises(ConfigError, match="used by localised inference only"):
        with_inference(plain, {"mode": "body"}, tmp_path / "out", locator)
    kept = with_inference(derived, {"threshold": 0.3}, tmp_path / "out")
    assert kept.locator is not None
    assert kept.locator.digest == locator.digest
