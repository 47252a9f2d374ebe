"""Importing the evaluation package loads neither torch nor a plotting library."""

from __future__ import annotations

import subprocess
import sys


def test_evaluation_loads_neither_torch_nor_matplotlib() -> None:
    program = (
        "import sys, gtvray.evaluation as package\n"
        "print([name for name in ('edt', 'scipy') if name in sys.modules])\n"
        "[getattr(package, name) for name in package.__all__]\n"
        "print([name for name in ('torch', 'monai', 'ray', 'mlflow', 'matplotlib') if name in sys.modules])\n"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.splitlines() == ["[]", "[]"]
