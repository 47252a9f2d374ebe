"""Training on a CUDA device: `make test-gpu`. Without one these skip."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gtvray.config import Config, with_dotted
from gtvray.data import CachedCase, PatchSampler
from gtvray.datasets import index_dataset
from gtvray.errors import ResourceError
from gtvray.evaluation import dice, reproduce
from gtvray.inference import Predictor
from gtvray.io import read_volume
from gtvray.models import Bundle, Checkpoint
from gtvray.runtime import Cluster
from gtvray.training import EpochReport, export_bundle, fit, fit_distributed, kept_checkpoint
from gtvray.training.reader import BatchReader

from ..golden_cases import made_golden
from ..gpu import NEEDS_GPU

pytestmark = NEEDS_GPU
GPU = {"training.use_gpu": True}
EXACT = {**GPU, "training.deterministic": True, "training.compile": "off"}
# Relative difference of losses to the CPU's in fp32. fp32 has TF32 off; 16-bit formats have 8 and 11 bits of mantissa.
TOLERANCES = {"fp32": 1e-3, "bf16": 5e-2, "fp16": 5e-2}


@pytest.fixture(scope="module")
def sides(train: list[CachedCase], selection: list[CachedCase]) -> tuple[list[CachedCase], list[CachedCase]]:
    return train, selection


@pytest.fixture(scope="module")
def cpu(config: Config, sides: Any, tmp_path_factory: pytest.TempPathFactory) -> list[EpochReport]:
    """The same training on the CPU."""
    return list(fit(config, *sides, tmp_path_factory.mktemp("cpu") / "run"))


@pytest.fixture(scope="module")
def bundle(config: Config, sides: Any, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A network trained on the CPU until its probabilities are far from the threshold."""
    folder = tmp_path_factory.mktemp("bundle")
    longer = {"training.steps_per_epoch": 12, "training.epochs": 5, "optimizer.lr": 0.01, "training.ema_decay": 0.8}
    trained = with_dotted(config, longer)
    *_, last = fit(trained, *sides, folder / "run")
    chosen = kept_checkpoint(Path(last.best_checkpoint), trained, sides[1], torch.device("cpu"))
    return export_bundle([chosen], trained, folder / "bundle", {})


def losses(reports: list[EpochReport]) -> list[float]:
    return [report.train_loss for report in reports]


def tensors(report: EpochReport) -> dict[str, torch.Tensor]:
    return Checkpoint.load(Path(report.checkpoint)).tensors


@pytest.mark.parametrize("compiled", ["off", "on", "graphs"])
@pytest.mark.parametrize("precision", TOLERANCES)
def test_the_curve_is_the_cpus_in_every_precision_compiled_or_not(
    precision: str, compiled: str, config: Config, sides: Any, cpu: list[EpochReport], tmp_path: Path, caplog: Any
) -> None:
    asked = with_dotted(config, {**GPU, "training.precision": precision, "training.compile": compiled})
    gpu = list(fit(asked, *sides, tmp_path))
    assert losses(gpu) == pytest.approx(losses(cpu), rel=TOLERANCES[precision])
    assert "runs eagerly" not in caplog.text


@pytest.mark.parametrize("on_gpu", [True, False])
def test_patches_may_be_augmented_on_either_device(
    on_gpu: bool, config: Config, sides: Any, cpu: list[EpochReport], tmp_path: Path
) -> None:
    gpu = list(fit(with_dotted(config, {**EXACT, "augmentation.on_gpu": on_gpu}), *sides, tmp_path))
    assert losses(gpu) == pytest.approx(losses(cpu), rel=TOLERANCES["fp32"])


def test_several_reading_threads_give_the_samplers_batches_in_order(config: Config, train: list[CachedCase]) -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    settings = (config.training, config.preprocessing, config.augmentation)
    expected = PatchSampler(train, *settings)
    for placed in (device, torch.device("cpu")):
        with BatchReader(PatchSampler(train, *settings, placed), device, threads=4) as reader:
            for step, batch in enumerate(reader.batches(lambda step: range(2 * step, 2 * step + 2), range(12))):
                images, masks = expected.batch(range(2 * step, 2 * step + 2))
                assert batch.images.device == batch.masks.device == device
                torch.testing.assert_close(batch.images.cpu(), images, rtol=0, atol=1e-3)
                assert float((batch.masks.cpu() != masks).float().mean()) < 1e-3


def test_deterministic_trainings_are_equal_to_the_last_bit(config: Config, sides: Any, tmp_path: Path) -> None:
    for precision in ("fp32", "fp16"):
        asked = with_dotted(config, {**EXACT, "training.precision": precision})
        first, second = (list(fit(asked, *sides, tmp_path / precision / name)) for name in "ab")
        assert losses(first) == losses(second)
        ours, theirs = tensors(first[-1]), tensors(second[-1])
        assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []


@pytest.mark.parametrize(
    "changes",
    [
        {"network.deep_supervision": True, "loss.kind": "dice_topk"},
        {"network.attention": "gates", "loss.kind": "dice_focal"},
        {"network.attention": "squeeze_excitation", "loss.kind": "dice_boundary", "loss.boundary_warmup_share": 0.0},
        {"network.kind": "residual_unet", "loss.kind": "batch_dice_ce"},
        {"network.kind": "residual_encoder_unet", "loss.kind": "batch_dice_focal"},
        {"network.subvoxels": [2, 2, 2], "loss.kind": "batch_dice_topk"},
    ],
    ids=lambda changes: next(iter(changes)).removeprefix("network.") + "-" + changes["loss.kind"],
)
def test_every_network_and_loss_has_repeatable_kernels(
    changes: dict[str, Any], config: Config, sides: Any, tmp_path: Path
) -> None:
    """`training.deterministic` raises on an operation that has none."""
    once = with_dotted(config, {**EXACT, "training.epochs": 1, "training.patch_ijk": [32, 32, 32], **changes})
    first, second = (list(fit(once, *sides, tmp_path / name)) for name in "ab")
    assert np.isfinite(losses(first)).all()
    assert losses(first) == losses(second)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_resumed_training_is_the_uninterrupted_one(
    precision: str, config: Config, sides: Any, tmp_path: Path
) -> None:
    asked = with_dotted(config, {**EXACT, "training.precision": precision, "network.dropout": 0.2})
    whole = list(fit(asked, *sides, tmp_path / "whole"))
    started = fit(asked, *sides, tmp_path / "parts")
    first = list(islice(started, 2))
    started.close()  # type: ignore[attr-defined]
    torch.manual_seed(99)
    rest = list(fit(asked, *sides, tmp_path / "parts", known_epoch=2))
    assert losses([*first, *rest]) == losses(whole)
    ours, theirs = tensors(rest[-1]), tensors(whole[-1])
    assert [key for key in theirs if not torch.equal(ours[key], theirs[key])] == []


@pytest.mark.parametrize(("first", "then"), [({}, EXACT), (EXACT, {})], ids=["cpu to gpu", "gpu to cpu"])
def test_a_checkpoint_moves_between_devices(
    first: dict[str, Any],
    then: dict[str, Any],
    config: Config,
    sides: Any,
    cpu: list[EpochReport],
    tmp_path: Path,
) -> None:
    started = fit(with_dotted(config, first), *sides, tmp_path)
    before = list(islice(started, 2))
    started.close()  # type: ignore[attr-defined]
    rest = list(fit(with_dotted(config, then), *sides, tmp_path, known_epoch=2))
    assert losses([*before, *rest]) == pytest.approx(losses(cpu), rel=TOLERANCES["fp32"])


@pytest.mark.ray
def test_one_worker_of_ray_train_has_the_curve_of_the_bare_loop(
    local_ray: Cluster, config: Config, sides: Any, tmp_path: Path
) -> None:
    asked = with_dotted(config, EXACT)
    alone = list(fit(asked, *sides, tmp_path / "alone"))
    reports = list(fit_distributed(asked, *sides, tmp_path / "ray"))
    assert losses(reports) == pytest.approx(losses(alone), rel=1e-6)


@pytest.mark.ray
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="this machine has no second CUDA device")
def test_two_workers_on_two_gpus_have_the_curve_of_one(
    local_ray: Cluster, config: Config, sides: Any, tmp_path: Path
) -> None:
    asked = with_dotted(config, EXACT)
    alone = list(fit(asked, *sides, tmp_path / "alone"))
    two = list(fit_distributed(with_dotted(asked, {"training.num_workers": 2}), *sides, tmp_path / "two"))
    assert losses(two) == pytest.approx(losses(alone), rel=TOLERANCES["fp32"])


@pytest.fixture
def little_memory() -> Iterator[None]:
    """A GPU of which this process may take a thousandth."""
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.001)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


def test_a_full_gpu_is_an_error_with_what_to_change(
    little_memory: None, config: Config, sides: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(import_module("gtvray.training.fit"), "check_memory", lambda *_: None)
    large = {"training.patch_ijk": [64, 64, 64], "network.features": [64, 64, 64], "training.batch_size": 8}
    with pytest.raises(ResourceError, match="out of memory on the GPU") as caught:
        list(fit(with_dotted(config, {**EXACT, **large}), *sides, tmp_path))
    assert "training.batch_size" in caught.value.fields["do"]
    assert "GB reserved" in caught.value.fields["found"]


def test_a_full_gpu_in_inference_is_an_error_with_what_to_change(bundle: Bundle, little_memory: None) -> None:
    # A tenth of what the fixture leaves: the network fits, and a batch does not.
    torch.cuda.set_per_process_memory_fraction(0.0001)
    many = replace(bundle, inference=bundle.inference.model_copy(update={"batch_size": 256}))
    predictor = Predictor(many, device="cuda")
    with pytest.raises(ResourceError, match="out of memory on the GPU") as caught:
        predictor.forward([np.zeros((bundle.preprocessing.channels, *bundle.patch_ijk), np.float32)])
    assert "inference.batch_size" in caught.value.fields["do"]


def test_a_fault_of_the_gpu_is_recognised() -> None:
    """In a process of its own, which cannot use the GPU any more."""
    script = """
import numpy as np, torch
from gtvray.errors import DeviceLostError
from gtvray.inference.backends.torch import run_network

def outside(patches):
    return patches[:, torch.full((1,), 9, device="cuda")]

try:
    run_network(outside, np.zeros((1, 1, 8, 8, 8), np.float32), torch.device("cuda"), torch.float32)
except DeviceLostError as error:
    print("recognised:", error.fields["found"])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert "recognised: CUDA error" in done.stdout, done.stderr[-2000:]


def test_checkpoints_are_scored_on_the_gpu_as_on_the_cpu(config: Config, sides: Any, tmp_path: Path) -> None:
    *_, last = fit(config, *sides, tmp_path)
    best = Path(last.best_checkpoint)
    asked = with_dotted(config, GPU)
    here = kept_checkpoint(best, config, sides[1], torch.device("cpu"))
    there = kept_checkpoint(best, asked, sides[1], torch.device("cuda", torch.cuda.current_device()))
    assert there[0] == here[0]
    np.testing.assert_allclose(there[1], here[1], atol=5e-3)


def test_localised_inference_is_that_of_the_cpu(bundle: Bundle, phantoms: Path) -> None:
    """With a locator, which runs on the same device."""
    scan = read_volume(index_dataset(phantoms).cases[0].image)
    localised = replace(
        bundle, locator=bundle, inference=bundle.inference.model_copy(update={"mode": "localised", "overlap": 0.5})
    )
    masks = []
    for device in ("cpu", "cuda"):
        predictor = Predictor(localised, device=device)
        assert predictor.locator is not None
        masks.append(predictor.predict(scan).array > 0)
    assert masks[0].any()
    assert dice(*masks) >= 0.999


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_the_gpu_segments_what_the_cpu_segments(precision: str, bundle: Bundle, phantoms: Path) -> None:
    scan = read_volume(index_dataset(phantoms).cases[0].image)
    expected = Predictor(bundle).predict(scan).array > 0
    assert expected.any()
    changed = replace(bundle, inference=bundle.inference.model_copy(update={"precision": precision}))
    found = Predictor(changed, device="cuda").predict(scan).array > 0
    # fp32 must reproduce what was promoted; 16-bit precisions are promoted as such and scored anew.
    assert dice(np.asarray(expected), np.asarray(found)) >= (0.999 if precision == "fp32" else 0.98)


def test_golden_cases_of_a_promotion_on_a_cpu_are_reproduced(bundle: Bundle, phantoms: Path, tmp_path: Path) -> None:
    scans = [read_volume(case.image) for case in index_dataset(phantoms).cases[:2]]
    golden = made_golden(tmp_path / "golden", bundle, scans)
    assert [case.ok for case in reproduce(golden, Predictor(bundle, device="cuda"))] == [True, True]
