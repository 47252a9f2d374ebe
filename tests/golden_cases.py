"""Golden cases for tests, and a change to them that makes their reproduction fail."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gtvray.geometry import Volume
from gtvray.inference import Predictor
from gtvray.io import atomic_dir, read_json, read_volume, sha256_of, write_json, write_volume
from gtvray.models import Bundle


def made_golden(folder: Path, bundle: Bundle, scans: Sequence[Volume]) -> Path:
    """Write golden cases with the masks that a bundle predicts on this machine with one thread."""
    predictor = Predictor(bundle, threads=1)
    with atomic_dir(folder) as temporary:
        for number, scan in enumerate(scans):
            write_volume(temporary / f"scan-{number}.nii.gz", scan)
            write_volume(temporary / f"mask-{number}.nii.gz", predictor.predict(scan))
        files = {file.name: sha256_of(file) for file in sorted(temporary.iterdir())}
        write_json(temporary / "golden.json", {"digest": bundle.digest, "threads": 1, "stack": {}, "files": files})
    return folder


def spoil(folder: Path, number: int = 0) -> None:
    """Replace the stored mask of a case by eight voxels in a corner of the scan."""
    mask = folder / f"mask-{number}.nii.gz"
    before = read_volume(mask)
    other = np.zeros(before.shape, np.uint8)
    other[:2, :2, :2] = 1
    write_volume(mask, before.with_array(other))
    about = read_json(folder / "golden.json")
    about["files"][mask.name] = sha256_of(mask)
    write_json(folder / "golden.json", about)
