"""The built wheel works without the clone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from .cli.command import ONE_TRIAL_SWEEP, OPEN_GATE

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
@pytest.mark.timeout(600)
def test_demo_runs_from_an_installed_wheel(tmp_path: Path) -> None:
    """The wheel is installed without dependencies, which this environment provides: installing them takes minutes."""
    build = _run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", tmp_path, REPOSITORY, cwd=tmp_path)
    if "Could not find a version" in build.stderr:
        pytest.skip("no package index is reachable to build a wheel")
    assert build.returncode == 0, build.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert _run(sys.executable, "-m", "venv", tmp_path / "env", cwd=tmp_path).returncode == 0
    binaries = tmp_path / "env" / "bin"
    # .pth files in the added folder are not processed, so an editable installation of the clone is not found.
    (packages,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    installed = _run(binaries / "pip", "install", "--quiet", "--no-deps", "--ignore-installed", wheel, cwd=tmp_path)
    assert installed.returncode == 0, installed.stderr
    where = _run(binaries / "python", "-c", "import gtvray; print(gtvray.__file__)", cwd=tmp_path)
    assert str(tmp_path / "env") in where.stdout
    complete = _run(binaries / "pip", "check", cwd=tmp_path)
    assert "gtvray" not in complete.stdout, complete.stdout
    shipped = "from importlib import resources; print((resources.files('gtvray.tune_configs') / 'demo.yaml').is_file())"
    assert _run(binaries / "python", "-c", shipped, cwd=tmp_path).stdout == "True\n"
    shipped = "from importlib import resources; print((resources.files('gtvray.deploy') / 'laptop.yaml').is_file())"
    assert _run(binaries / "python", "-c", shipped, cwd=tmp_path).stdout == "True\n"
    (tmp_path / "one.yaml").write_text(ONE_TRIAL_SWEEP)
    demo = _run(binaries / "gtvray", "demo", "--sweep", "one.yaml", *OPEN_GATE, "--json", cwd=tmp_path)
    assert demo.returncode == 0, demo.stderr
    assert json.loads(demo.stdout)["ok"]
