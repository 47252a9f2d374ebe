"""`gtvray data check` and `describe` on full-size cases: seconds per case and peak memory. There is no peer.

The cases are phantoms magnified to 512 x 512 x 124 voxels, with scanner-like noise, so that gzip has as much work as on
a real scan. Each command runs in its own process; start-up is included in its time. The results are valid only if the
check finds the duplicate scan, which has another orientation and data type (`found`).

    python benchmarks/checking.py --json [--cases 6]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

import numpy as np

from gtvray.datasets.phantoms import make_phantom
from gtvray.geometry import Volume, resample_to_grid
from gtvray.io import write_volume

SHAPE = (512, 512, 124)
NOISE_HU = 12.0
VERBS = {"check": ["check", "{data}", "--json"], "describe": ["describe", "{data}", "--json", "--out", "{out}"]}


def main() -> None:
    """Write the cases, run both commands, print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="no effect; the output is always JSON")
    parser.add_argument("--cases", type=int, default=6)
    given = parser.parse_args()
    result: dict[str, object] = {"cases": given.cases, "shape": SHAPE, "gtvray": metadata.version("gtvray")}
    with tempfile.TemporaryDirectory() as folder:
        data, out = Path(folder) / "data", Path(folder) / "out"
        for number in range(1, given.cases):
            write_case(data / str(number), number)
        write_again(data / "1", data / str(given.cases))
        for verb, words in VERBS.items():
            seconds, peak_mb, printed = run([word.format(data=data, out=out) for word in words])
            result |= {f"{verb}_s_per_case": seconds / given.cases, f"{verb}_peak_mb": peak_mb}
            found = [finding["code"] for finding in json.loads(printed)["findings"]]
            result[f"{verb}_found"] = found.count("scan.same") == 1
        result["page_mb"] = (out / "describe.html").stat().st_size / 1e6
    print(json.dumps(result))


def write_case(folder: Path, number: int) -> None:
    """Write a magnified phantom."""
    ct, label = (volume.reoriented("LPS") for volume in make_phantom(number, seed=0))
    affine = ct.affine.copy()
    affine[:3, :3] *= np.array(ct.shape) / SHAPE
    noise = np.random.default_rng(number).normal(0, NOISE_HU, SHAPE).astype(np.float32)
    hu = resample_to_grid(ct, affine, SHAPE, order=1, fill=-1000).array + noise
    soft = resample_to_grid(label.with_array(label.array.astype(np.float32)), affine, SHAPE, order=1, fill=0)
    write_volume(folder / "data.nii.gz", Volume(np.clip(np.rint(hu), -1024, 3071).astype(np.int16), affine))
    write_volume(folder / "label.nii.gz", Volume((soft.array >= 0.5).astype(np.uint8), affine))


def write_again(folder: Path, copy: Path) -> None:
    """Write the same case with other axes, the scan as float."""
    from gtvray.io import read_volume

    for name in ("data", "label"):
        volume = read_volume(folder / f"{name}.nii.gz").reoriented("SAR")
        kind = np.float32 if name == "data" else np.uint8
        write_volume(copy / f"{name}.nii.gz", volume.with_array(volume.array.astype(kind)))


def run(words: list[str]) -> tuple[float, float, str]:
    """Return seconds, peak memory in MB and output of a `gtvray data` command."""
    begun = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "gtvray", "data", *words], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    printed = process.stdout.read()
    # The usage of this child alone; RUSAGE_CHILDREN covers all children.
    _, _, used = os.wait4(process.pid, 0)
    process.returncode = 0
    return time.perf_counter() - begun, used.ru_maxrss / 1024, printed


if __name__ == "__main__":
    main()
