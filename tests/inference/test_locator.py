"""A bundle's locator tells where to look closely: the same mask for fewer patches, or the whole body."""

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
from .synthetic import PATCH_IJK, PREPROCESSING, answer, begin, body_scan, sees_bone, to_logits

TUMOUR = Box((28, 24, 20), (37, 31, 29))


def _job(scan: Volume, place: Box | None, highest: float = 0.9) -> SegmentationRequest:
    prepared = prepare(scan, PREPROCESSING)
    suspected = np.zeros(prepared.hu.shape, bool)
    if place is not None:
        suspected[place.slices] = True
    inference = InferenceConfig(mode="localised")
    return SegmentationRequest(prepared, PREPROCESSING, inference, PATCH_IJK, suspicion=Suspicion(suspected, highest))


def _where(scan: Volume, place: Box) -> Box:
    """A box of the scan on its prepared grid."""
    prepared = prepare(scan, PREPROCESSING)
    marked = np.zeros(scan.shape, np.uint8)
    marked[place.slices] = 1
    found = Box.around(scan.with_array(marked).reoriented("RAS").array)
    assert found is not None
    assert prepared.crop is not None
    return found.moved(prepared.crop.start_ijk)


def test_correct_suspicion_gives_the_mask_of_body_mode() -> None:
    scan = body_scan(tumours=[TUMOUR])
    near, body = answer(_job(scan, _where(scan, TUMOUR))), answer(begin(scan, mode="body"))
    np.testing.assert_array_equal(near.mask().array, body.mask().array)
    assert near.mask().array.any()
    seen = near.coverage()
    assert (seen.mode, seen.fallback) == ("localised", None)
    assert seen.patches <= 27 < body.patches


def test_region_is_widened_once_and_then_the_body_is_run() -> None:
    rod = Box((6, 24, 20), (58, 31, 29))
    scan = body_scan(tumours=[rod])
    body = answer(begin(scan, mode="body"))
    for part, fallback in ((Box((10, 24, 20), (52, 31, 29)), None), (Box((28, 26, 22), (30, 28, 24)), BEYOND)):
        job = answer(_job(scan, _where(scan, part)))
        assert job.coverage().fallback == fallback
        np.testing.assert_array_equal(job.mask().array, body.mask().array)


@pytest.mark.parametrize(("highest", "reason"), [(0.1, EMPTY), (0.4, UNSURE)])
def test_unreliable_suspicion_falls_back_to_the_body(highest: float, reason: str) -> None:
    scan = body_scan(tumours=[TUMOUR])
    job, body = answer(_job(scan, _where(scan, TUMOUR), highest)), answer(begin(scan, mode="body"))
    assert (job.coverage().mode, job.coverage().fallback) == ("body", reason)
    assert job.probability().tobytes() == body.probability().tobytes()


def test_localised_patches_coincide_with_exhaustive_ones() -> None:
    """Where the body's box begins has no say in where patches lie, on which networks' answers hang."""
    place = Box((20, 20, 15), (29, 27, 22))
    wide = Box((-33, -7, -20), (60, 75, 61))
    scan = body_scan((48, 44, 40), [place]).padded(wide, -1000)

    def centred(channels: np.ndarray) -> np.ndarray:
        """Sees the tumour in the middle of a patch only."""
        near = np.zeros(channels.shape[1:], np.float32)
        near[5:-5, 5:-5, 5:-5] = 1
        return near * sees_bone(channels)

    near = answer(_job(scan, _where(scan, place.moved(wide.start_ijk))), centred)
    others = {mode: answer(begin(scan, mode=mode), centred) for mode in ("exhaustive", "body")}
    masks = {mode: job.mask().array for mode, job in others.items()}
    assert near.coverage().fallback is None
    assert near.patches < others["body"].patches
    assert masks["exhaustive"].sum() > 100
    np.testing.assert_array_equal(near.mask().array, masks["exhaustive"])
    # It can fail: the patches of the body's box lie elsewhere.
    assert (masks["body"] != masks["exhaustive"]).any()


def test_suspicion_without_voxels_falls_back_to_the_body() -> None:
    job = answer(_job(body_scan(tumours=[TUMOUR]), None))
    assert (job.coverage().mode, job.coverage().fallback) == ("body", EMPTY)
    assert job.mask().array.any()


@pytest.mark.parametrize("seed", range(20))
def test_omitted_weights_are_bounded_at_every_voxel(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape, patch = tuple(rng.integers(30, 70, 3)), tuple(int(n) for n in rng.integers(8, 30, 3))
    grid, weights = PatchGrid.covering(shape, patch, 0.5), gaussian_weights(patch)
    body = sorted(rng.choice(len(grid), -(-len(grid) * 4 // 5), replace=False).tolist())
    place = np.zeros(shape, bool)
    low = rng.integers(0, np.asarray(shape) - 12)
    place[tuple(slice(s, s + n) for s, n in zip(low, rng.integers(1, 12, 3), strict=True))] = True
    look = RequiredPatches(grid, body, weights, (6.0, 6.0, 6.0))
    kept = look.around(place)
    every, some = np.zeros(shape), np.zeros(shape)
    for number in body:
        every[grid.slices(number)] += weights
        if number in kept:
            some[grid.slices(number)] += weights
    assert set(kept) <= set(body)
    assert (some[place] >= (1 - DROPPED_SHARE) * every[place] - 1e-4).all()
    assert not look.is_beyond(place, kept)
    # Nothing is kept that no voxel could tell from nothing.
    assert len(kept) <= len([n for n in body if grid.touching(place, (1, 1, 1)).count(n)])
    if kept:
        left_out = max(kept, key=lambda n: float(weights.max() * place[grid.slices(n)].sum()))
        assert look.is_beyond(place, [n for n in kept if n != left_out])


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
    job = predictor.begin(scan)
    predictor.run(job)
    assert job.mask().same_grid(scan)
    assert job.coverage().mode in {"localised", "body"}


def test_derived_bundle_has_the_given_locator(tmp_path: Path) -> None:
    from gtvray.promotion import with_inference

    plain, locator = random_bundle(tmp_path / "plain"), random_bundle(tmp_path / "loc", seed=3)
    derived = with_inference(plain, {"mode": "localised"}, tmp_path / "out", locator)
    assert derived.locator is not None
    assert derived.locator.digest == locator.digest
    assert derived.inference.mode == "localised"
    # And it stays when another setting changes.
    with pytest.raises(ConfigError, match="asks a locator"):
        with_inference(plain, {"mode": "body"}, tmp_path / "out", locator)
    kept = with_inference(derived, {"threshold": 0.3}, tmp_path / "out")
    assert kept.locator is not None
    assert kept.locator.digest == locator.digest
