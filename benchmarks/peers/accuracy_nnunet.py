"""A reduced nnU-Net trained and run, in nnU-Net's environment; prints one JSON line.

Its own planner, preprocessing, trainer (five epochs of 250 steps), augmentation and predictor. Reduced is the network's
configuration, since the one it plans by itself is out of reach of two CPU cores: patch 64 x 64 x 64, batch 2, five
stages of 16 to 256 channels. Trains on every case of DATA ("fold all"), writes a mask a scan of VAL to OUT, without
flips at test time. Nothing of gtvray is imported. It goes on where it was stopped, by epochs.

    nnUNet_compile=f nnUNet_n_proc_DA=1 python accuracy_nnunet.py DATA VAL WORK OUT
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

NAME = "Dataset501_Benchmark"
CONFIGURATION = "3d_reduced"
MODEL = f"nnUNetTrainer_5epochs__nnUNetPlans__{CONFIGURATION}"
FEATURES = (16, 32, 64, 128, 256)
PATCH, BATCH, EPOCHS = (64, 64, 64), 2, 5


def main() -> None:
    """Every stage that is not done yet; seconds and CPU seconds of each are kept in WORK."""
    data, val, work, out = (Path(given).resolve() for given in sys.argv[1:5])
    for key in ("raw", "preprocessed", "results"):
        (work / key).mkdir(parents=True, exist_ok=True)
        os.environ[f"nnUNet_{key}"] = str(work / key)
    kept = work / "stages.json"
    done: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    for name, stage in {"prepare": prepare, "train": train, "predict": predict}.items():
        if name not in done:
            done[name] = measured(stage, data, val, work, out)
            kept.write_text(json.dumps(done))
    print(json.dumps({**done, "features": FEATURES, "patch": PATCH, "batch": BATCH, "versions": versions()}))


def measured(stage: Any, *given: Path) -> dict[str, float]:
    """Wall-clock and CPU seconds of a stage, children included."""
    began, used = time.perf_counter(), cpu_s()
    told = stage(*given) or {}
    return {"seconds": time.perf_counter() - began, "cpu_s": cpu_s() - used, **told}


def cpu_s() -> float:
    """CPU seconds of this process and its ended children."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in usage)


def prepare(data: Path, val: Path, work: Path, out: Path) -> None:
    """Its layout, its plan with the reduced network, its preprocessing."""
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess

    raw = work / "raw" / NAME
    link(data, raw / "imagesTr", "_0000", "data.nii.gz")
    link(data, raw / "labelsTr", "", "label.nii.gz")
    about = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "target": 1}, "file_ending": ".nii.gz"}
    about["numTraining"] = len(list((raw / "imagesTr").iterdir()))
    (raw / "dataset.json").write_text(json.dumps(about))
    extract_fingerprints([501], num_processes=2)
    plan_experiments([501])
    path = work / "preprocessed" / NAME / "nnUNetPlans.json"
    plans = json.loads(path.read_text())
    plans["configurations"][CONFIGURATION] = {
        "inherits_from": "3d_fullres",
        "patch_size": list(PATCH),
        "batch_size": BATCH,
        "architecture": architecture(plans["configurations"]["3d_fullres"]["architecture"]),
    }
    path.write_text(json.dumps(plans))
    preprocess([501], configurations=(CONFIGURATION,), num_processes=(2,))


def architecture(planned: dict[str, Any]) -> dict[str, Any]:
    """The planned network, reduced to five stages."""
    stages = len(FEATURES)
    settings = {
        **planned["arch_kwargs"],
        "n_stages": stages,
        "features_per_stage": list(FEATURES),
        "kernel_sizes": [[3, 3, 3]] * stages,
        "strides": [[1, 1, 1]] + [[2, 2, 2]] * (stages - 1),
        "n_conv_per_stage": [2] * stages,
        "n_conv_per_stage_decoder": [2] * (stages - 1),
    }
    return {**planned, "arch_kwargs": settings}


def link(cases: Path, folder: Path, suffix: str, file: str) -> None:
    """One link a case."""
    folder.mkdir(parents=True, exist_ok=True)
    for case in sorted(path for path in cases.iterdir() if path.is_dir()):
        target = folder / f"{case.name}{suffix}.nii.gz"
        if not target.exists():
            target.symlink_to(case / file)


def train(data: Path, val: Path, work: Path, out: Path) -> dict[str, Any]:
    """Its trainer, with a checkpoint an epoch."""
    import torch
    from nnunetv2.training.nnUNetTrainer.variants.training_length.nnUNetTrainer_Xepochs import nnUNetTrainer_5epochs

    folder = work / "preprocessed" / NAME
    plans = json.loads((folder / "nnUNetPlans.json").read_text())
    about = json.loads((folder / "dataset.json").read_text())
    latest = work / "results" / NAME / MODEL / "fold_all" / "checkpoint_latest.pth"
    plans["continue_training"] = latest.exists()
    trainer = nnUNetTrainer_5epochs(plans, CONFIGURATION, "all", about, device=torch.device("cpu"))
    trainer.save_every = 1
    if latest.exists():
        trainer.load_checkpoint(str(latest))
    trainer.run_training()
    return {"steps": trainer.num_epochs * trainer.num_iterations_per_epoch}


def predict(data: Path, val: Path, work: Path, out: Path) -> dict[str, Any]:
    """A mask a case, from the last weights."""
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    scans = work / "val"
    link(val, scans, "_0000", "data.nii.gz")
    out.mkdir(parents=True, exist_ok=True)
    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), perform_everything_on_device=False)
    model = work / "results" / NAME / MODEL
    predictor.initialize_from_trained_model_folder(str(model), ("all",), "checkpoint_final.pth")
    for scan in sorted(scans.iterdir()):
        case = scan.name.removesuffix("_0000.nii.gz")
        if not (out / f"{case}.nii.gz").exists():
            predictor.predict_from_files_sequential([[str(scan)]], [str(out / case)], save_probabilities=False)
    return {"cases": len(list(out.glob("*.nii.gz")))}


def versions() -> dict[str, str]:
    """What ran."""
    return {name: metadata.version(name) for name in ("nnunetv2", "torch", "dynamic-network-architectures")}


if __name__ == "__main__":
    main()
