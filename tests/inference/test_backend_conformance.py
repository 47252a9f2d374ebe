"""Conformance of backends: what every choice of `inference.backend` must satisfy, on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any, get_args

import numpy as np
import pytest
import torch
from scipy.special import expit

from gtvray.config import InferenceConfig
from gtvray.errors import ConfigError, ResourceError
from gtvray.geometry import Volume
from gtvray.inference import ConversionStore, Predictor
from gtvray.inference.backends.registry import BACKENDS, open_backends
from gtvray.inference.backends.torch import TorchBackend
from gtvray.models import Bundle

NAMES = get_args(InferenceConfig.model_fields["backend"].annotation)
PRECISIONS = get_args(InferenceConfig.model_fields["precision"].annotation)
# Largest difference of a probability from torch in fp32.
TOLERANCES = {"fp32": 1e-4, "bf16": 0.06, "fp16": 0.02}
PATCH_IJK = (16, 16, 16)

# Precisions that no backend offers on a CPU.
REFUSED = ("fp16",)

every_backend = pytest.mark.parametrize("name", NAMES)
every_precision = pytest.mark.parametrize(
    ("name", "precision"), [(name, each) for name, each in product(NAMES, PRECISIONS) if each not in REFUSED]
)
every_refused_precision = pytest.mark.parametrize(("name", "precision"), list(product(NAMES, REFUSED)))

Make = Callable[..., Bundle]


def _predictor(bundle: Bundle, store: ConversionStore, threads: int = 1) -> Predictor:
    """A predictor, or a skipped test where the machine lacks what the backend needs."""
    try:
        return Predictor(bundle, threads=threads, store=store)
    except ResourceError as error:
        pytest.skip(error.what)


def _patches(count: int, patch_ijk: tuple[int, ...] = PATCH_IJK) -> list[np.ndarray]:
    return list(np.random.default_rng(1).random((count, 1, *patch_ijk), dtype=np.float32))


def test_every_choice_of_the_schema_has_a_backend() -> None:
    assert set(BACKENDS) == set(NAMES)
    assert set(PRECISIONS) == set(TOLERANCES)


@every_precision
def test_logits_equal_torch_within_the_tolerance(make: Make, store: ConversionStore, name: str, precision: str) -> None:
    predictor = _predictor(make(members=2, backend=name, precision=precision), store)
    patches = _patches(3)
    found = predictor.forward(patches)
    expected = Predictor(make(members=2), threads=1).forward(patches)
    assert found.shape == (3, *PATCH_IJK)
    assert found.dtype == np.float32
    assert np.abs(expit(found) - expit(expected)).max() < TOLERANCES[precision]
    assert expit(expected).std() > 0.05


@every_refused_precision
def test_unsupported_precision_is_rejected_by_name(
    make: Make, store: ConversionStore, name: str, precision: str
) -> None:
    """A silent fallback to another precision would give other masks than those that were promoted."""
    with pytest.raises((ConfigError, ValueError), match=precision):
        Predictor(make(backend=name, precision=precision), threads=1, store=store)


@every_precision
def test_logits_of_a_patch_do_not_depend_on_its_batch(
    make: Make, store: ConversionStore, name: str, precision: str
) -> None:
    predictor = _predictor(make(members=2, backend=name, precision=precision), store)
    patches = _patches(3)
    together = predictor.forward(patches)
    for position, patch in enumerate(patches):
        assert predictor.forward([patch]).tobytes() == together[position].tobytes()
        assert predictor.forward([patches[0], patch])[1].tobytes() == together[position].tobytes()


@pytest.mark.parametrize(
    "patch_ijk", [(32, 16, 20), pytest.param((16, 16, 16), marks=pytest.mark.slow), (24, 16, 12)], ids=str
)
@every_backend
def test_every_patch_size_runs(make: Make, store: ConversionStore, name: str, patch_ijk: Any) -> None:
    patches = _patches(2, patch_ijk)
    found = _predictor(make(patch_ijk, backend=name), store).forward(patches)
    expected = Predictor(make(patch_ijk), threads=1).forward(patches)
    assert found.shape == (2, *patch_ijk)
    assert np.abs(expit(found) - expit(expected)).max() < TOLERANCES["fp32"]


@every_backend
def test_threads_repeat_exactly_and_change_rounding_only(make: Make, store: ConversionStore, name: str) -> None:
    patches, found = _patches(3), []
    for threads in (1, 2):
        predictor = _predictor(make(backend=name), store, threads)
        assert torch.get_num_threads() == threads
        found.append(predictor.forward(patches))
        assert predictor.forward(patches).tobytes() == found[-1].tobytes()
        again = _predictor(make(backend=name), store, threads).forward(patches)
        assert again.tobytes() == found[-1].tobytes()
    np.testing.assert_allclose(expit(found[0]), expit(found[1]), atol=1e-5)


@every_backend
def test_one_network_is_opened_per_member(make: Make, store: ConversionStore, name: str) -> None:
    try:
        opened = open_backends(make(members=2, backend=name), torch.device("cpu"), store)
    except ResourceError as error:
        pytest.skip(error.what)
    batch = np.stack(_patches(3))
    first, second = (each.run(batch) for each in opened)
    assert first.shape == second.shape == (3, *PATCH_IJK)
    assert np.abs(first - second).max() > 0.01


@every_backend
def test_predictors_of_one_bundle_give_identical_masks(make: Make, store: ConversionStore, name: str) -> None:
    """As a served replica and an offline command, which load the bundle separately."""
    hu = np.random.default_rng(0).normal(40, 200, (32, 24, 20)).clip(-900, 1500).astype(np.int16)
    scan = Volume(hu, np.diag([-4.0, -4, 4, 1]))
    masks = [_predictor(make(backend=name), store).predict(scan).array for _ in range(2)]
    assert masks[0].tobytes() == masks[1].tobytes()
    expected = Predictor(make(), threads=1).predict(scan).array
    shared = int((masks[0] & expected).sum())
    assert 2 * shared / int(masks[0].sum() + expected.sum()) >= 0.999


def test_torch_rejects_fp16_on_a_cpu_before_the_first_batch() -> None:
    with pytest.raises(ConfigError, match="CUDA") as caught:
        TorchBackend(torch.nn.Identity(), torch.device("cpu"), "fp16")
    assert "fp16" in caught.value.fields["found"]


def test_tolerance_detects_another_network(make: Make) -> None:
    """The comparison with torch can fail: two members differ by more than any tolerance."""
    one, two = (
        TorchBackend(make(members=2).build_network(member), torch.device("cpu")).run(np.stack(_patches(3)))
        for member in range(2)
    )
    assert np.abs(expit(one) - expit(two)).max() > 2 * max(TOLERANCES.values())
