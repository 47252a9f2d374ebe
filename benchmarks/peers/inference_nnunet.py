"""nnU-Net's predictor on one scan, run in nnU-Net's environment; prints one JSON line. gtvray is not imported.

Reader, preprocessing, sliding window and export are nnU-Net's, without flips, with the networks that `nnunet_job.py`
wrote to the folder JOB. "file" processes the file of the scan to that of the mask, twice. "grid" runs only the sliding
window on an array that was prepared elsewhere and writes the probabilities beside it; "grid-fp32" does so with sums
over patches in single instead of nnU-Net's half precision.

    nnUNet_def_n_proc=2 python inference_nnunet.py JOB THREADS file SCAN OUT
    nnUNet_def_n_proc=2 python inference_nnunet.py JOB THREADS grid|grid-fp32 CHANNELS OUT
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

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

DATASET = {"labels": {"background": 0, "GTV": 1}, "channel_names": {"0": "CT"}, "file_ending": ".nii.gz"}


class Counted(torch.nn.Module):
    """A network that counts its input patches.

    Attributes:
        patches: number of patches so far.
    """

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network, self.patches = network, 0

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """As the network."""
        self.patches += len(patches)
        return self.network(patches)


def plans(job: dict[str, Any]) -> PlansManager:
    """Return the plan of nnU-Net for a CT; its normalisation scales the window to 0 to 1."""
    resampling = "resample_data_or_seg_to_shape"
    orders = {"data": 3, "seg": 1, "probabilities": 1}
    names = {f"resampling_fn_{kind}": resampling for kind in orders}
    settings = {
        f"resampling_fn_{kind}_kwargs": {"is_seg": kind == "seg", "order": n, "order_z": 0, "force_separate_z": None}
        for kind, n in orders.items()
    }
    channels = len(job["windows_hu"])
    return PlansManager(
        {
            "dataset_name": "Dataset001_Benchmark",
            "image_reader_writer": "SimpleITKIO",
            "transpose_forward": [0, 1, 2],
            "transpose_backward": [0, 1, 2],
            "label_manager": "LabelManager",
            "foreground_intensity_properties_per_channel": {
                str(channel): {"mean": low, "std": high - low, "percentile_00_5": low, "percentile_99_5": high}
                for channel, (low, high) in enumerate(job["windows_hu"])
            },
            "configurations": {
                "3d_fullres": {
                    "preprocessor_name": "DefaultPreprocessor",
                    "patch_size": job["patch"],
                    "spacing": job["spacing_mm"],
                    "normalization_schemes": ["CTNormalization"] * channels,
                    "use_mask_for_norm": [False] * channels,
                    **names,
                    **settings,
                    "architecture": {},
                }
            },
        }
    )


def warm_predictor(folder: Path) -> tuple[nnUNetPredictor, Counted, int]:
    """Make the predictor with the network of a job, and return the number of windows that it needs."""
    job = json.loads((folder / "job.json").read_text())
    device = torch.device(os.environ.get("GTVRAY_BENCH_DEVICE", "cpu"))
    network = Counted(torch.jit.load(folder / "network.pt", map_location="cpu").eval().to(device))
    predictor = nnUNetPredictor(
        tile_step_size=1 - job["overlap"],
        use_gaussian=True,
        use_mirroring=False,
        perform_everything_on_device=device.type == "cuda",
        device=device,
        allow_tqdm=False,
    )
    manager = plans(job)
    configuration = manager.get_configuration("3d_fullres")
    predictor.manual_initialization(
        network, manager, configuration, [network.state_dict()], DATASET, "nnUNetTrainer", None
    )
    return predictor, network, len(job["windows_hu"])


def file_to_file(folder: Path, scan: str, out: str) -> dict[str, Any]:
    """Run from file to file as often as the job states; nnU-Net reads one file per window."""
    began, seconds = time.perf_counter(), []
    times = json.loads((folder / "job.json").read_text())["times"]
    predictor, network, windows = warm_predictor(folder)
    for _ in range(times):
        predictor.predict_from_files_sequential([[scan] * windows], [out.removesuffix(DATASET["file_ending"])])
        seconds.append(time.perf_counter() - began)
        began = time.perf_counter()
    return {"cold_s": seconds[0], "warm_s": seconds[-1], "patches": network.patches // times}


def same_grid(folder: Path, channels: str, out: str) -> dict[str, Any]:
    """Run only the sliding window: channels (c, i, j, k) to tumour probabilities (i, j, k)."""
    predictor, network, _ = warm_predictor(folder)
    logits = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(np.load(channels)))
    np.save(out, predictor.label_manager.apply_inference_nonlin(logits)[1].numpy())
    return {"patches": network.patches}


def same_grid_fp32(folder: Path, channels: str, out: str) -> dict[str, Any]:
    """Do the same with sums in single precision; in half, a sum of eight weighted logits has errors of some 0.001."""
    torch.half = torch.float32
    return same_grid(folder, channels, out)


def main() -> None:
    """Parse the command line."""
    folder, threads, what, source, out = sys.argv[1:6]
    torch.set_num_threads(int(threads))
    ways = {"file": file_to_file, "grid": same_grid, "grid-fp32": same_grid_fp32}
    found = ways[what](Path(folder) / what.partition("-")[0], source, out)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    versions = {name: metadata.version(name) for name in ("nnunetv2", "torch", "simpleitk", "numpy")}
    mask = {"mask": out} if what == "file" else {}
    print(json.dumps({**found, **mask, "peak_mb": peak_mb, "versions": versions}))


if __name__ == "__main__":
    main()
