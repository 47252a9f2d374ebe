"""Commands submitted as jobs to a Ray cluster; `test_submit_log.py` tests against a stand-in for the dashboard."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import ray

from gtvray.failpoints import ONCE_VARIABLE, VARIABLE
from gtvray.io import read_json_lines
from gtvray.runtime import Cluster

from ..ports import free_port
from .command import OPEN_GATE, Finished, run

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def dashboard(local_ray: Cluster) -> str:
    from ray._private.worker import get_dashboard_url

    return f"http://{get_dashboard_url()}"


def submit(dashboard: str, *words: object) -> Finished:
    return run("submit", "--address", dashboard, *words)


@pytest.mark.slow
def test_successful_job(dashboard: str, phantoms: Path) -> None:
    done = submit(dashboard, "--json", "--", "data", "check", phantoms, "--json")
    assert done.code == 0, done
    assert done.json()["status"] == "SUCCEEDED"
    assert done.stderr.count('"findings": [') == 1, "the log is streamed once"


@pytest.mark.slow
def test_failed_job_is_reported(dashboard: str, phantoms: Path, tmp_path: Path) -> None:
    for name in ("1", "2"):
        shutil.copytree(phantoms / name, tmp_path / "data" / name)
    (tmp_path / "data" / "1" / "label.nii.gz").unlink()
    done = submit(dashboard, "--", "data", "check", tmp_path / "data", "--json")
    assert done.code == 1
    assert done.stdout == "", "--json belongs to the job"
    assert "case has no mask" in done.stderr
    assert "\nerror: job did not succeed" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("command", ["sweep", "data check"])
def test_paths_that_the_cluster_lacks_are_named_before_the_job_is_accepted(
    command: str, dashboard: str, tiny_sweep: Path, tmp_path: Path
) -> None:
    """A worker of every node looks for the paths of a sweep, the head for those of other commands."""
    gone = tmp_path / "gone"
    words = {
        "sweep": ["sweep", tiny_sweep, "--data", tmp_path, "--workspace", gone / "runs"],
        "data check": ["data", "check", gone],
    }
    before = run("submit", "list", "--address", dashboard, "--json").json()
    error = run("submit", "--address", dashboard, "--no-wait", "--", *words[command]).error(code=2)
    node = "the head" if command == "data check" else ray.util.get_node_ip_address()
    assert f"found: {gone} on {node}" in error
    assert run("submit", "list", "--address", dashboard, "--json").json() == before


@pytest.mark.slow
def test_no_wait_returns_the_job(dashboard: str, phantoms: Path) -> None:
    done = submit(dashboard, "--no-wait", "--json", "--", "data", "check", phantoms)
    assert done.code == 0, done
    assert done.json()["job"]


@pytest.mark.slow
def test_job_runs_on_its_cluster_although_another_was_started_later(dashboard: str, local_ray: Cluster) -> None:
    hold = "from gtvray.runtime import connect\nwith connect(cpus=1): print('up', flush=True), input()"
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", hold], stdin=pipe, stdout=pipe, text=True, env=environment) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "up\n"
        done = submit(dashboard, "--", "doctor", "--json")
        other.communicate("\n")
    assert f"2 CPUs, 0 GPUs; {local_ray.address}" in done.stderr


def test_unreachable_cluster_is_reported(phantoms: Path) -> None:
    dead = f"http://127.0.0.1:{free_port()}"
    error = submit(dead, "--", "data", "check", phantoms).error(code=1)
    assert dead in error
    assert "do: " in error


@pytest.mark.slow
def test_a_sweep_whose_driver_is_killed_continues(
    dashboard: str, phantoms: Path, tiny_sweep: Path, tmp_path: Path
) -> None:
    """The driver is killed when the first of two trials has ended."""
    fault = {VARIABLE: "tuning.after_end=kill", ONCE_VARIABLE: str(tmp_path)}
    words = ("sweep", tiny_sweep, "--data", phantoms, "--workspace", tmp_path / "runs", *OPEN_GATE)
    done = run("submit", "--address", dashboard, "--retries", 1, "--", *words, **fault)
    assert done.code == 0, done
    assert "killed by SIGKILL in attempt 1 of 2; continuing" in done.stderr
    (sweep,) = (tmp_path / "runs" / "sweeps").iterdir()
    trials = {line["trial"] for line in read_json_lines(sweep / "trials.jsonl") if "trial" in line}
    assert len(trials) <= 2
    assert len(list((tmp_path / "runs" / "bundles").iterdir())) == 1
