"""nnU-Net's own trainer, run in nnU-Net's environment; prints one JSON line.

Planner, preprocessing, `run_training` with its loader in one background process, losses, SGD and schedule are
nnU-Net's. Two values of its plan are set: the spacing, and the network, which has no bias before a normalisation, so
that it equals gtvray's parameter by parameter. The trainer without deep supervision is one of nnU-Net's.
On a CPU it trains in single precision only and never compiles: `train_step` uses autocast on CUDA devices only.
gtvray is not imported.

    nnUNet_compile=f nnUNet_n_proc_DA=1 python training_nnunet.py prepare WORK SPACING PATCH BATCH
    nnUNet_compile=f nnUNet_n_proc_DA=1 python training_nnunet.py network WORK WEIGHTS
    nnUNet_compile=f nnUNet_n_proc_DA=1 python training_nnunet.py train WORK WARMUP STEPS

WORK has the cases, `cases/<case>/data.nii.gz` and `label.nii.gz`. The environment determines the number of threads.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

NAME, NUMBER = "Dataset502_Training", 502
CONFIGURATION = "3d_benchmark"
FEATURES = (16, 32, 64, 128, 256)
STRIDES = [[1, 1, 1]] + [[2, 2, 2]] * (len(FEATURES) - 1)
_KERNELS = {3: "convolution", 2: "upsampling", 1: "head"}


def main() -> None:
    """Run one stage and print its result."""
    stage, work, given = sys.argv[1], Path(sys.argv[2]).resolve(), sys.argv[3:]
    for key in ("raw", "preprocessed", "results"):
        (work / "nnunet" / key).mkdir(parents=True, exist_ok=True)
        os.environ[f"nnUNet_{key}"] = str(work / "nnunet" / key)
    if stage == "prepare":
        found = prepare(work, [float(mm) for mm in given[0].split(",")], int(given[1]), int(given[2]))
    elif stage == "network":
        found = network(work, Path(given[0]))
    else:
        found = train(work, int(given[0]), int(given[1]))
    names = ("nnunetv2", "torch", "dynamic-network-architectures", "batchgeneratorsv2")
    print(json.dumps({**found, "versions": {name: metadata.version(name) for name in names}}))


def prepare(work: Path, spacing_ijk_mm: list[float], patch: int | list[int], batch: int) -> dict[str, Any]:
    """Write nnU-Net's layout and plan with the given spacing, patch, batch and network, and preprocess."""
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess

    raw = work / "nnunet" / "raw" / NAME
    for folder, suffix, file in (("imagesTr", "_0000", "data.nii.gz"), ("labelsTr", "", "label.nii.gz")):
        (raw / folder).mkdir(parents=True)
        for case in sorted((work / "cases").iterdir()):
            (raw / folder / f"{case.name}{suffix}.nii.gz").symlink_to((case / file).resolve())
    about = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "target": 1}, "file_ending": ".nii.gz"}
    about["numTraining"] = len(list((raw / "imagesTr").iterdir()))
    (raw / "dataset.json").write_text(json.dumps(about))
    extract_fingerprints([NUMBER], num_processes=2)
    plan_experiments([NUMBER])
    path = work / "nnunet" / "preprocessed" / NAME / "nnUNetPlans.json"
    plans = json.loads(path.read_text())
    planned = plans["configurations"]["3d_fullres"]
    plans["configurations"][CONFIGURATION] = {
        **planned,
        "data_identifier": CONFIGURATION,
        # nnU-Net has the axes of SimpleITK, in reverse order.
        "spacing": spacing_ijk_mm[::-1],
        "patch_size": [patch] * 3 if isinstance(patch, int) else patch[::-1],
        "batch_size": batch,
        "architecture": architecture(planned["architecture"], conv_bias=False),
    }
    path.write_text(json.dumps(plans))
    preprocess([NUMBER], configurations=(CONFIGURATION,), num_processes=(2,))
    return {"cases": about["numTraining"], "batch_dice": planned["batch_dice"]}


def architecture(planned: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Return the planned network with the given widths and changed settings."""
    stages = len(FEATURES)
    settings = {
        **planned["arch_kwargs"],
        "n_stages": stages,
        "features_per_stage": list(FEATURES),
        "kernel_sizes": [[3, 3, 3]] * stages,
        "strides": STRIDES,
        "n_conv_per_stage": [2] * stages,
        "n_conv_per_stage_decoder": [2] * (stages - 1),
        **changes,
    }
    return {**planned, "arch_kwargs": settings}


def trainer(work: Path, kind: Any, device: str = "cpu") -> Any:
    """Make a trainer of the given class on all cases."""
    import torch

    folder = work / "nnunet" / "preprocessed" / NAME
    plans, about = (json.loads((folder / name).read_text()) for name in ("nnUNetPlans.json", "dataset.json"))
    plans["continue_training"] = False
    return kind(plans, CONFIGURATION, "all", about, device=torch.device(device))


def network(work: Path, weights: Path) -> dict[str, Any]:
    """Compare the logits of nnU-Net's network with the weights of another, and count the operations of a step.

    Args:
        work: working folder.
        weights: an npz file with the other network's parameters as `by_kind` names them, and its `patches` and
            `logits`.
    """
    import torch
    from nnunetv2.training.nnUNetTrainer.variants.network_architecture.nnUNetTrainerNoDeepSupervision import (
        nnUNetTrainerNoDeepSupervision,
    )

    made = trainer(work, nnUNetTrainerNoDeepSupervision)
    made.initialize()
    made.set_deep_supervision_enabled(False)
    given = np.load(weights)
    patches = torch.from_numpy(given["patches"])
    cost = step_cost(made.network, patches)
    own = by_kind((name, each) for name, each in made.network.named_parameters() if each.grad is not None)
    others = set(given.files) - {"patches", "logits"}
    assert set(own) == others, sorted(set(own) ^ others)
    with torch.no_grad():
        for name, parameter in own.items():
            # Softmax of two logits equals the sigmoid of their difference, so the background logit is zero.
            parameter[:-1].zero_() if name.startswith("head") else None
            target = parameter[-1:] if name.startswith("head") else parameter
            target.copy_(torch.from_numpy(given[name]))
        answer = made.network(patches)
    differs = (answer[:, 1:] - answer[:, :1] - torch.from_numpy(given["logits"])).abs()
    return {"max_abs_difference": float(differs.max()), **cost}


def step_cost(network: Any, patches: Any) -> dict[str, int]:
    """Count the parameters used, and the floating-point operations of a forward and a backward pass."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        network(patches).sum().backward()
    parameters = sum(each.numel() for each in network.parameters() if each.grad is not None)
    return {"parameters": parameters, "flops": counter.get_total_flops()}


def by_kind(parameters: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Return the parameters of a U-Net under names that both projects share: kind, and number in the order of layers.

    Args:
        parameters: parameters by their names in the network.
    """
    found: dict[str, Any] = {}
    counts: dict[str, int] = {}
    for name, parameter in parameters:
        kind = _KERNELS[parameter.shape[-1]] if parameter.ndim > 1 else "normalisation" if "norm" in name else "head"
        kind += "_" + name.rpartition(".")[2]
        counts[kind] = counts.get(kind, 0) + 1
        found[f"{kind}_{counts[kind]}"] = parameter
    return found


def train(work: Path, warmup: int, steps: int) -> dict[str, Any]:
    """Run nnU-Net's training loop: one epoch to warm up, then one that is measured."""
    from nnunetv2.training.nnUNetTrainer.variants.network_architecture.nnUNetTrainerNoDeepSupervision import (
        nnUNetTrainerNoDeepSupervision,
    )

    lengths, seconds, losses = (warmup, steps), [], []

    class Timed(nnUNetTrainerNoDeepSupervision):  # type: ignore[misc]  # another environment's
        """Times the training steps of each epoch; validates on one batch."""

        def on_train_epoch_start(self) -> None:
            super().on_train_epoch_start()
            self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = lengths[self.current_epoch], 1
            self.began = time.perf_counter()

        def on_train_epoch_end(self, train_outputs: Any) -> None:
            seconds.append(time.perf_counter() - self.began)
            super().on_train_epoch_end(train_outputs)
            losses.append(float(np.mean([each["loss"] for each in train_outputs])))

    made = trainer(work, Timed)
    made.num_epochs = len(lengths)
    made.run_training()
    import torch

    return {
        "steps": steps,
        "seconds": seconds[-1],
        "train_loss": losses[-1],
        "threads": torch.get_num_threads(),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


if __name__ == "__main__":
    main()
