"""The predictor: independence of the batch, equality with MONAI, and masks on the grid of the scan."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.inferers.utils import sliding_window_inference

from gtvray.config import InferenceConfig, NetworkConfig, PreprocessingConfig
from gtvray.errors import DataError
from gtvray.geometry import Volume
from gtvray.inference import Predictor, SegmentationRequest, run_patches
from gtvray.models import Bundle, build_network, weights_of, write_bundle
from gtvray.preprocessing import prepare, to_channels

PATCH = (16, 16, 16)
PREPROCESSING = PreprocessingConfig(
    spacing_mm=(4.0, 4.0, 4.0), windows_hu=((-200.0, 300.0), (-1000.0, 1000.0)), body_margin_mm=100
)


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Any:
    torch.manual_seed(0)
    network = build_network(NetworkConfig(features=(8, 8, 16)), 2, PREPROCESSING.spacing_mm, PATCH)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.5)
    folder: Path = tmp_path_factory.mktemp("bundles")

    def bundle(**inference: Any) -> Bundle:
        return write_bundle(
            folder / "_".join(map(str, inference.values())),
            weights=weights_of(network),
            preprocessing=PREPROCESSING,
            network=NetworkConfig(features=(8, 8, 16)),
            inference=InferenceConfig(**inference),
            patch_ijk=PATCH,
            info={},
        )

    return bundle


def _scan(shape: tuple[int, int, int]) -> Volume:
    hu = np.random.default_rng(0).normal(40, 200, shape).clip(-900, 1500)
    hu[:, :2] = -1000
    return Volume(hu.astype(np.int16), np.diag([-4.0, -4, 4, 1]))


def _probability(predictor: Predictor, scan: Volume) -> np.ndarray:
    request = predictor.begin(scan)
    run_patches(request, predictor.forward, predictor.batch_size)
    return request.probability()


@pytest.mark.parametrize(("precision", "threads"), [("fp32", 1), ("fp32", 2), ("bf16", 1)])
def test_logits_do_not_depend_on_what_shares_the_batch(make: Any, precision: str, threads: int) -> None:
    predictor = Predictor(make(batch_size=4, precision=precision), threads=threads)
    assert torch.get_num_threads() == threads
    patches = list(np.random.default_rng(1).random((4, 2, *PATCH), dtype=np.float32))
    together = predictor.forward(patches)
    assert together.shape == (4, *PATCH)
    assert together.dtype == np.float32
    for position, patch in enumerate(patches):
        assert predictor.forward([patch]).tobytes() == together[position].tobytes()
        assert predictor.forward([patches[0], patch, patches[2]])[1].tobytes() == together[position].tobytes()
    assert together.std() > 0.01


@pytest.mark.parametrize("shape", [(32, 40, 24), (37, 45, 29)])
def test_exhaustive_mode_equals_monais_sliding_window(make: Any, shape: tuple[int, int, int]) -> None:
    scan, bundle = _scan(shape), make(mode="exhaustive", batch_size=2)
    hu = prepare(scan, PREPROCESSING, full_extent=True).hu
    assert hu.shape == shape
    channels = torch.from_numpy(to_channels(hu.array, PREPROCESSING.windows_hu))[None]
    with torch.inference_mode():
        logits = sliding_window_inference(channels, PATCH, 2, bundle.build_network(), overlap=0.5, mode="gaussian")
    found = _probability(Predictor(bundle), scan)
    np.testing.assert_allclose(found, logits[0, 0].sigmoid().numpy(), atol=1e-5)
    assert found.std() > 0.01
    # The comparison can fail: nnU-Net's patches have other positions and weights.
    other = _probability(Predictor(make(mode="exhaustive", batch_size=2, sliding_window="nnunet")), scan)
    assert np.abs(other - found).max() > 1e-3


def test_exhaustive_mode_includes_the_cropped_region(make: Any) -> None:
    """Tissue separate from the body is run in mode `exhaustive` only, and flags do not depend on the mode."""
    narrow = PREPROCESSING.model_copy(update={"body_margin_mm": 6.0})
    bundles = {mode: replace(make(mode=mode, batch_size=4), preprocessing=narrow) for mode in ("exhaustive", "body")}
    hu = np.full((60, 40, 24), -1000, np.int16)
    hu[2:34, 4:36, 2:22] = _scan((32, 32, 20)).array
    hu[44:58, 10:24, 4:18] = 300
    scan = Volume(hu, np.diag([-4.0, -4, 4, 1]))
    requests = {mode: Predictor(bundle).begin(scan) for mode, bundle in bundles.items()}
    assert requests["exhaustive"].prepared.hu.shape == scan.shape
    assert requests["body"].prepared.hu.shape[0] < 44
    assert requests["exhaustive"].out_of_domain == requests["body"].out_of_domain != ()
    assert requests["exhaustive"].patches > requests["body"].patches


def test_interleaved_requests_equal_separate_ones(make: Any) -> None:
    """Batches filled from two requests, as in a server, give each its mask bit for bit."""
    predictor = Predictor(make(mode="body", batch_size=3))
    scans = [_scan((32, 24, 24)), _scan((40, 24, 20))]
    alone = [_probability(predictor, scan) for scan in scans]
    requests: list[SegmentationRequest] = [predictor.begin(scan) for scan in scans]
    while any(request.remaining for request in requests):
        taken = [(request, request.take()) for request in (*requests, requests[1]) if request.remaining]
        for (request, patch), logits in zip(taken, predictor.forward([p.channels for _, p in taken]), strict=True):
            request.put(patch.number, logits)
    for request, expected in zip(requests, alone, strict=True):
        assert request.probability().tobytes() == expected.tobytes()


@pytest.mark.parametrize("shape", [(32, 40, 24), (10, 40, 6)])
def test_predict_is_repeatable_and_on_the_grid_of_the_scan(make: Any, shape: tuple[int, int, int]) -> None:
    predictor = Predictor(make(threshold=0.5, batch_size=2))
    predictor.warm()
    scan = _scan(shape)
    masks = [predictor.predict(scan) for _ in range(2)]
    assert masks[0].array.tobytes() == masks[1].array.tobytes()
    assert masks[0].affine.tobytes() == scan.affine.tobytes()
    assert masks[0].shape == scan.shape
    assert set(np.unique(masks[0].array)) <= {0, 1}
    # The grid of the scan is the prepared one flipped, so the mask is the thresholded probability itself.
    expected = (_probability(predictor, scan) > 0.5)[::-1, ::-1]
    np.testing.assert_array_equal(masks[0].array, expected)


def test_input_that_is_not_a_ct_is_rejected_by_name(make: Any) -> None:
    with pytest.raises(DataError) as caught:
        Predictor(make(batch_size=2)).predict(Volume(np.zeros((20, 20, 20), np.int16), np.eye(4)), "scan.nii")
    assert caught.value.fields["where"] == "scan.nii"
