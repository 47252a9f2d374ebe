"""The systemd unit that restarts a command: it is valid, and does not restart after invalid input."""

from __future__ import annotations

import configparser
import shutil
import subprocess
from pathlib import Path

import pytest

UNIT = Path(__file__).resolve().parents[2] / "cluster" / "systemd" / "gtvray-run@.service"


def test_wrong_input_is_not_restarted_and_the_run_keeps_its_id() -> None:
    unit = configparser.ConfigParser(interpolation=None, strict=True)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(UNIT.read_text())
    service = unit["Service"]
    assert service["Restart"] == "on-failure"
    assert service["RestartPreventExitStatus"] == "2"
    assert service["Environment"] == "GTVRAY_RUN_ID=%i"
    assert int(unit["Unit"]["StartLimitBurst"]) * int(service["RestartSec"]) < int(
        unit["Unit"]["StartLimitIntervalSec"]
    )


def test_unit_passes_systemd_analyze(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    # The program and the user exist only where the unit is installed.
    text = UNIT.read_text().replace("/opt/gtvray/bin/gtvray", "/bin/true").replace("User=gtvray", "User=root")
    (tmp_path / "gtvray-run@liver.service").write_text(text)
    command = ["systemd-analyze", "verify", str(tmp_path / "gtvray-run@liver.service")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, "gtvray-run" in done.stderr) == (0, False), done.stderr
