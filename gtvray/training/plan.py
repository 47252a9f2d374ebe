"""Checks of a training before it starts."""

from __future__ import annotations

from collections.abc import Sequence

from gtvray.config import Config
from gtvray.data import CachedCase
from gtvray.errors import ConfigError, DataError
from gtvray.models import plan_network


def check_plan(config: Config, train: Sequence[CachedCase], selection: Sequence[CachedCase]) -> None:
    """Refuse a training that cannot work, from its settings and cases alone.

    It does not inspect the device, so the driver of a cluster can call it. `fit` checks memory in the worker.

    Raises:
        ConfigError: the batch cannot be shared by the workers, several workers share a GPU, the patch cannot be halved
            as the network needs or is larger than every case, or fp16 or CUDA graphs without a GPU.
        DataError: no case for training or for selection, fewer than workers, none with a tumour, or a case on both
            sides.
    """
    _check_workers(config)
    _check_device(config)
    plan_network(config.network, config.preprocessing.spacing_mm, config.training.patch_ijk)
    _check_cases(config, train, selection)
    _check_patch(config, train)


def _check_workers(config: Config) -> None:
    training = config.training
    if training.batch_size % training.num_workers:
        raise ConfigError(
            "the batch cannot be shared evenly",
            expected=f"training.batch_size a multiple of training.num_workers = {training.num_workers}",
            found=training.batch_size,
            do="change training.batch_size or training.num_workers",
        )
    if training.use_gpu and training.num_workers > 1 and training.gpus_per_worker < 1:
        raise ConfigError(
            "workers of one training cannot share a GPU",
            where="training.gpus_per_worker",
            expected=f"1, a GPU for each of {training.num_workers} workers: NCCL refuses two ranks on one device",
            found=training.gpus_per_worker,
            do="set training.gpus_per_worker=1, or training.num_workers=1 to run several trials on a GPU",
        )


def _check_device(config: Config) -> None:
    training = config.training
    if training.use_gpu:
        return
    if training.precision == "fp16":
        raise ConfigError("training.precision=fp16 is for GPUs", do="set training.use_gpu=true, or use bf16 or fp32")
    if config.inference.precision == "fp16":
        # Its selection cases are scored on the device it is trained on.
        raise ConfigError(
            "inference.precision=fp16 is for GPUs, and so is the training of such a model",
            do="set training.use_gpu=true, or inference.precision to bf16 or fp32",
        )
    if training.compile == "graphs":
        raise ConfigError(
            "training.compile=graphs is for GPUs", do="set training.use_gpu=true, or training.compile to on or off"
        )


def _check_cases(config: Config, train: Sequence[CachedCase], selection: Sequence[CachedCase]) -> None:
    workers = config.training.num_workers
    if not train or not selection:
        raise DataError(
            "no training cases or no selection cases",
            found=f"{len(train)} training and {len(selection)} selection cases",
            do="add cases, or change split.selection_share and split.held_out_share",
        )
    if len(train) < workers:
        raise DataError(
            "more workers than training cases",
            expected=f"{workers} cases or more",
            found=f"{len(train)} cases",
            do="lower training.num_workers",
        )
    shared = {case.meta["image_sha256"] for case in train} & {case.meta["image_sha256"] for case in selection}
    if shared:
        raise DataError(
            "scans are in both training and selection",
            found=f"{len(shared)} scans",
            do="`gtvray data check` lists duplicates; keep one copy of each scan",
        )
    for side, cases in (("training", train), ("selection", selection)):
        if not any(case.meta["tumour_ml"] > 0 for case in cases):
            raise DataError(
                f"no {side} case has a tumour",
                found=f"{len(cases)} cases with empty masks",
                do="check the masks with `gtvray data check`, or use another split.seed",
            )


def _check_patch(config: Config, train: Sequence[CachedCase]) -> None:
    """Reject a patch that exceeds every case on every axis; where it exceeds some cases it is padded with air."""
    patch, largest = config.training.patch_ijk, [max(sizes) for sizes in zip(*(c.shape for c in train), strict=True)]
    if all(size > most for size, most in zip(patch, largest, strict=True)):
        raise ConfigError(
            "the patch is larger than every case along every axis",
            where="training.patch_ijk",
            expected=f"at most {largest} along one axis, at preprocessing.spacing_mm {config.preprocessing.spacing_mm}",
            found=list(patch),
            do="lower training.patch_ijk, or preprocessing.spacing_mm to have more voxels per case",
        )
