"""nnU-Net as a contestant of `gpu.py`, run in its own environment without gtvray; prints lines of JSON.

Training is its own `run_training` with its loader, augmentation processes and torch.compile, all with defaults, on the
network, patch, spacing and batch of gtvray's plan, which `gpu.py` has written to WORK/nnunet.json. Inference is
`inference_nnunet.py` on the GPU.

    python gpu_nnunet.py training-SIZE-PATCH-nnunet|inference-nnunet WORK THREADS
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import training_nnunet as base

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def main() -> None:
    """Run one part."""
    name, work, threads = sys.argv[1], Path(sys.argv[2]).resolve(), int(sys.argv[3])
    torch.set_num_threads(threads)
    if name == "inference-nnunet":
        print(json.dumps(inference(work)), flush=True)
        return
    plan = json.loads((work / "nnunet.json").read_text())[name.removeprefix("training-").removesuffix("-nnunet")]
    print(json.dumps(training(work, plan)), flush=True)


def training(work: Path, plan: dict[str, Any]) -> dict[str, Any]:
    """Run a warm-up epoch, which includes compilation, then a timed one."""
    base.FEATURES = tuple(plan["features"])
    base.architecture = lambda planned, **changes: architecture(planned, plan, **changes)
    base.trainer_of = base.trainer
    base.trainer = lambda folder, kind: base.trainer_of(folder, kind, DEVICE)
    for key in ("raw", "preprocessed", "results"):
        (work / "nnunet" / key).mkdir(parents=True, exist_ok=True)
        os.environ[f"nnUNet_{key}"] = str(work / "nnunet" / key)
    base.prepare(work, list(plan["spacing_mm"]), list(plan["patch_ijk"]), plan["batch"])
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
    found = base.train(work, plan["steps"], plan["steps"])
    peak = round(torch.cuda.max_memory_reserved() / 1e9, 3) if DEVICE == "cuda" else None
    steps_s = round(found["steps"] / found["seconds"], 3)
    return {"steps_s": steps_s, "train_loss": found["train_loss"], "peak_gb": peak}


def architecture(planned: dict[str, Any], plan: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Return nnU-Net's planned network with the stages of gtvray's; its axes are in reverse order."""
    stages = len(plan["features"])
    settings = {
        **planned["arch_kwargs"],
        "n_stages": stages,
        "features_per_stage": plan["features"],
        "kernel_sizes": [kernel[::-1] for kernel in plan["kernels_ijk"]],
        "strides": [stride[::-1] for stride in plan["strides_ijk"]],
        "n_conv_per_stage": [2] * stages,
        "n_conv_per_stage_decoder": [2] * (stages - 1),
        **changes,
    }
    return {**planned, "arch_kwargs": settings}


def inference(work: Path) -> dict[str, Any]:
    """Run nnU-Net's predictor from file to file."""
    os.environ["GTVRAY_BENCH_DEVICE"] = DEVICE
    for key in ("raw", "preprocessed", "results"):
        os.environ[f"nnUNet_{key}"] = str(work / "job")
    import inference_nnunet

    found = inference_nnunet.file_to_file(work / "job" / "file", str(work / "case" / "data.nii.gz"), f"{work}/n.nii.gz")
    peak = round(torch.cuda.max_memory_reserved() / 1e9, 3) if DEVICE == "cuda" else None
    return {"cold_s": round(found["cold_s"], 3), "warm_s": round(found["warm_s"], 3), "peak_gb": peak}


if __name__ == "__main__":
    main()
