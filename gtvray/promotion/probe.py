"""A bundle loaded by a fresh process must answer as it does here: `python -m gtvray.promotion.probe BUNDLE THREADS`."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from gtvray.models import Bundle

_TIMEOUT_S = 110


def answers_alike(bundle: Bundle, threads: int) -> bool:
    """Whether a fresh process loads the bundle and gives a fixed patch the same answer, bit for bit."""
    command = [sys.executable, "-m", "gtvray.promotion.probe", str(bundle.folder), str(threads)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=True)
        answer = json.loads(done.stdout.splitlines()[-1])
    except (subprocess.SubprocessError, json.JSONDecodeError, IndexError):
        return False
    return bool(answer == probe(bundle.folder, threads))


def probe(folder: Path, threads: int) -> dict[str, str]:
    """Load a bundle, run one patch of fixed noise, and digest the answer."""
    from gtvray.inference import Predictor

    predictor = Predictor(Bundle.load(folder), threads=threads)
    channels = predictor.bundle.preprocessing.channels
    patch = np.random.default_rng(0).random((channels, *predictor.bundle.patch_ijk), dtype=np.float32)
    answer = predictor.forward([patch])
    return {"digest": predictor.bundle.digest, "answer": hashlib.sha256(answer.tobytes()).hexdigest()}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(probe(Path(sys.argv[1]), int(sys.argv[2]))) + "\n")
