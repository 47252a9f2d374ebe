"""The built wheel works without the clone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


def _run(*command: object, cwd: Path, timeout_s: float = 600) -> subprocess.CompletedProcess[str]:
    # Neither this environment's packages nor the clone are visible to the process.
    hidden = ("PYTHONPATH", "VIRTUAL_ENV", "RAY_ADDRESS", "GTVRAY_WORKSPACE")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    words = [str(word) for word in command]
    return subprocess.run(
        words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False
    )


@pytest.mark.slow
# Installing PyTorch, Ray and MLflow into a new environment takes minutes.
@pytest.mark.timeout(900)
def test_demo_runs_from_an_installed_wheel(tmp_path: Path) -> None:
    build = _run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", tmp_path, REPOSITORY, cwd=tmp_path)
    if "Could not find a version" in build.stderr:
        pytest.skip("no package index is reachable to build a wheel")
    assert build.returncode == 0, build.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert _run(sys.executable, "-m", "venv", tmp_path / "env", cwd=tmp_path).returncode == 0
    binaries = tmp_path / "env" / "bin"
    constraints = REPOSITORY / "constraints.txt"
    installed = _run(binaries / "pip", "install", "--quiet", "-c", constraints, wheel, cwd=tmp_path)
    assert installed.returncode == 0, installed.stderr
    where = _run(binaries / "python", "-c", "import gtvray; print(gtvray.__file__)", cwd=tmp_path)
    assert str(tmp_path / "env") in where.stdout
    demo = _run(binaries / "gtvray", "demo", "--json", cwd=tmp_path)
    assert demo.returncode == 0, demo.stderr
    assert json.loads(demo.stdout)["ok"]
