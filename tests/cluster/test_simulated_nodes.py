"""Trainings are planned per node, refused if they fit on none, and report what they wait for; trials run on several."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def found(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    file = tmp_path_factory.mktemp("simulated") / "found.json"
    script = str(Path(__file__).with_name("simulated.py"))
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    subprocess.run([sys.executable, script, str(file), str(phantoms)], env=environment, timeout=580, check=True)
    return json.loads(file.read_text())


def test_a_worker_must_fit_on_one_node(found: Any) -> None:
    assert sorted(found["nodes"]) == [[0, 0, 1], [2, 0, 4]]
    assert found["concurrent"] == 8
    assert "does not fit on this cluster" in found["six"]
    assert "6 CPUs" in found["six"]
    assert "4 x (2 CPUs, 0 GPUs, 8.0 GB)" in found["six"]
    assert "training.use_gpu=false" in found["no_gpu"]


def test_an_autoscaler_is_waited_for_with_a_limit(found: Any) -> None:
    assert found["growing"] == [3, False]
    assert found["waited"].startswith("the cluster had no free resources for a training")
    assert "within 4 s (training.resources_wait_s)" in found["waited"]
    (first_s, reason), *_ = found["reasons"]
    assert first_s < 10
    assert "waiting for 1 x (3 CPUs" in reason
    assert "8 of 8 CPUs" in reason
    assert found["came"]


def test_cuda_device_is_checked_on_a_worker(found: Any) -> None:
    """The driver's node has no CPU and no GPU."""
    assert found["asked"].startswith("torch sees no CUDA device")


def test_trials_of_a_sweep_run_on_several_nodes(found: Any) -> None:
    """Their node has no worker of the driver's, and no process of them is left."""
    sweep = found["sweep"]
    assert sweep["code"] == 0, sweep["stderr"]
    trials = json.loads(sweep["stdout"])["trials"]
    assert {trial["trial"]: (trial["epochs"], trial["ending"]) for trial in trials} == {
        "t0": (2, "completed"),
        "t1": (2, "completed"),
    }
    assert len(set(sweep["nodes"])) == 2, "each trial needs a node of its own"
    assert sweep["left"] == []
