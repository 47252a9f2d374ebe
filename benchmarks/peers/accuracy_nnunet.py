"""Train and run a reduced nnU-Net in nnU-Net's environment; prints one JSON line.

Planner, preprocessing, trainer (five epochs of 250 steps), augmentation and predictor are nnU-Net's. The network is
reduced, because the one that nnU-Net plans is too large for two CPU cores: patch 64 x 64 x 64, batch 2, five
stages of 16 to 256 channels. It trains on every case of DATA ("fold all") and writes a mask per scan of VAL to OUT,
without flips at test time. gtvray is not imported. An interrupted run resumes after its last epoch; use STEPS other
than 250 for tests only.

    nnUNet_compile=f nnUNet_n_proc_DA=1 python accuracy_nnunet.py DATA VAL WORK OUT [STEPS]
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from accuracy_clock import EpochClock, measured
from training_nnunet import FEATURES, architecture

NAME = "Dataset501_Benchmark"
CONFIGURATION = "3d_reduced"
MODEL = f"nnUNetTrainer_5epochs__nnUNetPlans__{CONFIGURATION}"
PATCH, BATCH, STEPS, VALIDATION_SHARE = (64, 64, 64), 2, 250, 0.2
PLANNING = "nnunetv2.experiment_planning.plan_and_preprocess_api"
TRAINER = "nnunetv2.training.nnUNetTrainer.variants.training_length.nnUNetTrainer_Xepochs"
PREDICTOR = "nnunetv2.inference.predict_from_raw_data"


def main() -> None:
    """Run every stage that is not done yet and store its seconds and CPU seconds, those of prediction beside OUT."""
    data, val, work, out = (Path(given).resolve() for given in sys.argv[1:5])
    steps = int(sys.argv[5]) if sys.argv[5:] else STEPS
    for key in ("raw", "preprocessed", "results"):
        (work / key).mkdir(parents=True, exist_ok=True)
        os.environ[f"nnUNet_{key}"] = str(work / key)
    # Not included in the time of any stage.
    for module in (PLANNING, TRAINER, PREDICTOR):
        import_module(module)
    done = {
        "prepare": kept(work / "prepare.json", prepare, data, work),
        "train": kept(work / "train.json", train, work, steps),
        "predict": kept(out.with_name(f"{out.name}.json"), predict, val, work, out),
    }
    settings = {"features": FEATURES, "patch": PATCH, "batch": BATCH, "steps_per_epoch": steps}
    print(json.dumps({**done, **settings, "versions": versions()}))


def kept(file: Path, stage: Callable[..., dict[str, Any] | None], *given: Any) -> dict[str, Any]:
    """Return the result of a stage; run it if there is no file with it."""
    if not file.exists():
        found = json.dumps(measured(stage, *given))
        whole = file.with_suffix(".partial")
        whole.write_text(found)
        whole.replace(file)
    return dict(json.loads(file.read_text()))


def cores() -> int:
    """Number of processes or threads."""
    return int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))


def prepare(data: Path, work: Path) -> None:
    """Write nnU-Net's layout and plan with the reduced network, and preprocess."""
    planning = import_module(PLANNING)
    raw = work / "raw" / NAME
    link(data, raw / "imagesTr", "_0000", "data.nii.gz")
    link(data, raw / "labelsTr", "", "label.nii.gz")
    about = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "target": 1}, "file_ending": ".nii.gz"}
    about["numTraining"] = len(list((raw / "imagesTr").iterdir()))
    (raw / "dataset.json").write_text(json.dumps(about))
    planning.extract_fingerprints([501], num_processes=cores())
    planning.plan_experiments([501])
    path = work / "preprocessed" / NAME / "nnUNetPlans.json"
    plans = json.loads(path.read_text())
    plans["configurations"][CONFIGURATION] = {
        "inherits_from": "3d_fullres",
        "patch_size": list(PATCH),
        "batch_size": BATCH,
        "architecture": architecture(plans["configurations"]["3d_fullres"]["architecture"]),
    }
    path.write_text(json.dumps(plans))
    planning.preprocess([501], configurations=(CONFIGURATION,), num_processes=(cores(),))


def link(cases: Path, folder: Path, suffix: str, file: str) -> None:
    """Fill a folder with one link per case and nothing else."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for case in sorted(path for path in cases.iterdir() if path.is_dir()):
        (folder / f"{case.name}{suffix}.nii.gz").symlink_to((case / file).resolve())


def train(work: Path, steps: int) -> dict[str, Any]:
    """Run nnU-Net's trainer with a checkpoint per epoch."""
    import torch

    folder, results = work / "preprocessed" / NAME, work / "results" / NAME / MODEL / "fold_all"
    plans = json.loads((folder / "nnUNetPlans.json").read_text())
    about = json.loads((folder / "dataset.json").read_text())
    latest, final = (results / f"checkpoint_{name}.pth" for name in ("latest", "final"))
    plans["continue_training"] = latest.exists()
    torch.set_num_threads(cores())
    clock = EpochClock(work / "epochs.json")
    trainer = import_module(TRAINER).nnUNetTrainer_5epochs(
        plans, CONFIGURATION, "all", about, device=torch.device("cpu")
    )
    trainer.save_every = 1
    if steps != STEPS:
        trainer.num_iterations_per_epoch = steps
        trainer.num_val_iterations_per_epoch = max(1, int(steps * VALIDATION_SHARE))
    watch(trainer, clock)
    if not final.exists():
        if latest.exists():
            trainer.load_checkpoint(str(latest))
        trainer.run_training()
    return {"steps": trainer.num_epochs * trainer.num_iterations_per_epoch, **clock.total()}


def watch(trainer: Any, clock: EpochClock) -> None:
    """Time the epochs of a trainer, and write its checkpoints atomically, so that an interruption does not lose all.

    The methods of the object are replaced, because a subclass would change the class name in the model.
    """
    end, save = trainer.on_epoch_end, trainer.save_checkpoint

    def on_epoch_end() -> None:
        clock.epoch(trainer.current_epoch)
        end()

    def save_checkpoint(filename: str) -> None:
        save(f"{filename}.partial")
        Path(f"{filename}.partial").replace(filename)

    trainer.on_epoch_end, trainer.save_checkpoint = on_epoch_end, save_checkpoint


def predict(val: Path, work: Path, out: Path) -> dict[str, Any]:
    """Predict a mask for every case with the last weights, in one timed run."""
    import torch

    torch.set_num_threads(cores())
    scans = out.with_name(f"{out.name}-scans")
    link(val, scans, "_0000", "data.nii.gz")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    predictor = import_module(PREDICTOR).nnUNetPredictor(
        use_mirroring=False, device=torch.device("cpu"), perform_everything_on_device=False
    )
    model = work / "results" / NAME / MODEL
    predictor.initialize_from_trained_model_folder(str(model), ("all",), "checkpoint_final.pth")
    for scan in sorted(scans.iterdir()):
        case = scan.name.removesuffix("_0000.nii.gz")
        predictor.predict_from_files_sequential([[str(scan)]], [str(out / case)], save_probabilities=False)
    return {"cases": len(list(out.glob("*.nii.gz")))}


def versions() -> dict[str, str]:
    """Return the versions of nnU-Net and its libraries."""
    return {name: metadata.version(name) for name in ("nnunetv2", "torch", "dynamic-network-architectures")}


if __name__ == "__main__":
    main()
