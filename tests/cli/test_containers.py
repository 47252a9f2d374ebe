"""Commands in containers: without a user name or a home, and with only the workspace writable."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gtvray import __version__

from ..namespaces import as_nameless_user
from .command import ONE_TRIAL_SWEEP

NAMELESS = ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME", "XDG_CACHE_HOME", "MPLCONFIGDIR")


def command(*words: object, cwd: Path, **changes: str) -> subprocess.CompletedProcess[str]:
    """Run a command as a user without a name and, unless `changes` sets it, without a home."""
    variables = {name: value for name, value in os.environ.items() if name not in {*NAMELESS, "RAY_ADDRESS"}} | changes
    line = [*as_nameless_user(), sys.executable, "-m", "gtvray", *map(str, words)]
    done = subprocess.run(line, env=variables, cwd=cwd, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stdout + done.stderr, done
    return done


@pytest.mark.parametrize(
    ("words", "home"),
    [("--version", None), ("--version", "/"), ("--version", "closed"), ("--help", None), ("config show", "closed")],
)
def test_light_commands_need_no_home(tmp_path: Path, words: str, home: str | None) -> None:
    (tmp_path / "closed").mkdir(mode=0o000)
    changes = {} if home is None else {"HOME": str(tmp_path / home)}
    done = command(*words.split(), cwd=tmp_path, TMPDIR=str(tmp_path / "none"), **changes)
    assert done.returncode == 0, done
    assert not done.stderr
    if words == "--version":
        assert done.stdout == f"{__version__}\n"


def test_unwritable_workspace_is_reported_with_a_remedy(tmp_path: Path, phantoms: Path) -> None:
    read_only = tmp_path / "read-only"
    read_only.mkdir(mode=0o555)
    done = command("data", "prepare", phantoms, cwd=read_only)
    assert done.returncode == 2
    assert "--workspace" in done.stderr


def test_name_outside_the_locale_is_reported_with_a_remedy(tmp_path: Path, phantoms: Path) -> None:
    shutil.copytree(phantoms, tmp_path / "Übung")
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = command("data", "prepare", tmp_path / "Übung", cwd=tmp_path, **ascii_only)
    assert done.returncode == 2
    assert "LC_ALL=C.UTF-8" in done.stderr


@pytest.mark.slow
@pytest.mark.ray
def test_pipeline_runs_for_a_user_without_a_name_and_a_long_temporary_folder(tmp_path: Path, phantoms: Path) -> None:
    scratch = tmp_path / ("x" * 120)
    scratch.mkdir()
    sweep = tmp_path / "one.yaml"
    sweep.write_text(ONE_TRIAL_SWEEP)
    examined = command("doctor", "--port", "0", cwd=tmp_path, TMPDIR=str(scratch))
    assert examined.returncode == 0, examined
    done = command("sweep", sweep, "--data", phantoms, cwd=tmp_path, TMPDIR=str(scratch))
    assert done.returncode == 0, done
    bundle = next((tmp_path / "gtvray-runs" / "bundles").iterdir())
    scan = next(phantoms.rglob("data.nii.gz"))
    done = command("predict", scan, "-m", bundle, "-o", tmp_path / "mask.nii.gz", cwd=tmp_path)
    assert done.returncode == 0, done
    assert (tmp_path / "mask.nii.gz").is_file()
