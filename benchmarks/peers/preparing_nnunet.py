"""nnU-Net's own preprocessor on one case, run in nnU-Net's environment; prints one JSON line.

The CT normalisation has mean 0, deviation 1 and the full range of the scanner, so that the output is in HU and the
work is the same. gtvray is not imported.

    python preparing_nnunet.py CASE OUT SPACING_MM
"""

from __future__ import annotations

import json
import resource
import sys
import time
from importlib import metadata
from pathlib import Path

import numpy as np
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

AIR_HU, TOP_HU = -1024.0, 3071.0


def plans(spacing_zyx_mm: list[float]) -> PlansManager:
    """Return the plan of nnU-Net for a CT at a given spacing."""
    resampling = "resample_data_or_seg_to_shape"
    return PlansManager(
        {
            "dataset_name": "Dataset001_Benchmark",
            "image_reader_writer": "SimpleITKIO",
            "transpose_forward": [0, 1, 2],
            "transpose_backward": [0, 1, 2],
            "label_manager": "LabelManager",
            "foreground_intensity_properties_per_channel": {
                "0": {"mean": 0.0, "std": 1.0, "percentile_00_5": AIR_HU, "percentile_99_5": TOP_HU}
            },
            "configurations": {
                "3d_fullres": {
                    "preprocessor_name": "DefaultPreprocessor",
                    "patch_size": [48, 192, 192],
                    "spacing": spacing_zyx_mm,
                    "normalization_schemes": ["CTNormalization"],
                    "use_mask_for_norm": [False],
                    "resampling_fn_data": resampling,
                    "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None},
                    "resampling_fn_seg": resampling,
                    "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, "order_z": 0, "force_separate_z": None},
                    "architecture": {},
                }
            },
        }
    )


def main() -> None:
    """Prepare the case, time it, and write the result as HU (i, j, k) beside nnU-Net's own files."""
    case, out = Path(sys.argv[1]), Path(sys.argv[2])
    manager = plans([float(value) for value in sys.argv[3].split(",")][::-1])
    configuration = manager.get_configuration("3d_fullres")
    dataset = {"labels": {"background": 0, "GTV": 1}, "channel_names": {"0": "CT"}, "file_ending": ".nii.gz"}
    preprocessor = DefaultPreprocessor(verbose=False)
    stem = str(out / "case")
    began, busy = time.perf_counter(), time.process_time()
    preprocessor.run_case_save(
        stem, [str(case / "data.nii.gz")], str(case / "label.nii.gz"), manager, configuration, dataset
    )
    seconds, cpu_s = time.perf_counter() - began, time.process_time() - busy
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    import blosc2

    hu = np.asarray(blosc2.open(stem + ".b2nd", mode="r")[:])[0].transpose(2, 1, 0)
    np.save(out / "hu.npy", hu)
    versions = {name: metadata.version(name) for name in ("nnunetv2", "torch", "scikit-image", "scipy", "numpy")}
    print(json.dumps({"seconds": seconds, "cpu_s": cpu_s, "peak_mb": peak_mb, "shape": hu.shape, "versions": versions}))


if __name__ == "__main__":
    main()
