"""The systemd units of a command and of Ray's head: they are valid, and restart what can continue."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from ray.scripts.scripts import start

FOLDER = Path(__file__).resolve().parents[2] / "cluster" / "systemd"
UNIT = FOLDER / "gtvray-run@.service"
HEAD = FOLDER / "gtvray-ray-head.service"
# Ray's processes on the other nodes exit if the head is away for longer.
HEAD_WAIT_S = 60


def parsed(file: Path) -> configparser.ConfigParser:
    # Keys may occur several times, such as Environment: the last one is kept.
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(file.read_text())
    return unit


def test_wrong_input_is_not_restarted_and_the_run_keeps_its_id() -> None:
    unit = parsed(UNIT)
    service = unit["Service"]
    assert service["Restart"] == "on-failure"
    assert service["RestartPreventExitStatus"] == "2"
    assert service["Environment"] == "GTVRAY_RUN_ID=%i"
    assert int(unit["Unit"]["StartLimitBurst"]) * int(service["RestartSec"]) < int(
        unit["Unit"]["StartLimitIntervalSec"]
    )


def test_head_is_restarted_in_time_with_options_that_ray_accepts() -> None:
    service = parsed(HEAD)["Service"]
    assert service["Restart"] == "always"
    assert int(service["RestartSec"]) + int(service["TimeoutStopSec"]) < HEAD_WAIT_S
    assert {"RAY_AUTH_MODE=token", "RAY_USAGE_STATS_ENABLED=0"} <= set(service["Environment"].split())
    program, command, *options = service["ExecStart"].split()
    assert (program, command, options.pop()) == ("/opt/gtvray/bin/ray", "start", "$OPTIONS")
    context = start.make_context("start", options)
    assert (context.params["head"], context.params["block"]) == (True, True)


@pytest.mark.parametrize(("unit", "name"), [(UNIT, "gtvray-run@liver.service"), (HEAD, HEAD.name)])
def test_unit_passes_systemd_analyze(unit: Path, name: str, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    # The program and the user exist only where the unit is installed.
    text = re.sub(r"/opt/gtvray/bin/(gtvray|ray)", "/bin/true", unit.read_text()).replace("User=gtvray", "User=root")
    (tmp_path / name).write_text(text)
    command = ["systemd-analyze", "verify", str(tmp_path / name)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, "gtvray-" in done.stderr) == (0, False), done.stderr
