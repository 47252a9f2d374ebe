"""The GPU benchmark's script: partial results, time limits, missing GPUs and peers; not its measurements."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.py"
# What `benchmarks/gpu.py --json` promises.
KEYS = {"card", "torch", "training_steps_s", "peer_steps_s", "inference_s", "peer_inference_s", "peak_gb", "demo_ok"}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_gpu", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        # As for a script, whose folder is searched for modules.
        patch.syspath_prepend(SCRIPT.parent)
        spec.loader.exec_module(module)
    return module


def program(folder: Path, text: str) -> Path:
    """A part, as a shell script."""
    path = folder / "part.sh"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("text", "ended"),
    [
        ("""echo '{"steps_s": 1}'; echo noise; echo '{"steps_s": 2}'""", None),
        ("""echo '{"steps_s": 1}'; echo '{"steps_s": 2}'; echo why >&2; exit 3""", "exit code 3"),
        ("""echo '{"steps_s": 1}'; echo '{"steps_s": 2}'; exec sleep 60""", "cut off after 1 s"),
    ],
)
def test_a_part_keeps_the_results_it_printed(script: ModuleType, text: str, ended: str | None, tmp_path: Path) -> None:
    given = Namespace(nnunet_python=program(tmp_path, text), work=tmp_path, threads=1, tiny=True)
    found = script.run("training-small-cube-nnunet", given, 1.0 if ended and "cut" in ended else 30.0)
    assert found["steps_s"] == 2
    assert found.get("failed") == ended
    if ended == "exit code 3":
        assert "why" in found["log"]


def test_parts_without_time_or_peer_are_skipped_with_the_reason(script: ModuleType) -> None:
    given = Namespace(nnunet_python=None)
    assert script.skipped("demo", given, 100.0) is None
    assert script.skipped("demo", given, 3.0) == {"skipped": "3 s left of 480"}
    assert script.skipped("inference-nnunet", given, 100.0) == {"skipped": "nnU-Net is not installed"}


def test_the_report_has_every_key_with_null_for_what_was_not_run(script: ModuleType) -> None:
    none: dict[str, Any] = script.report({}, {})
    assert set(none) >= KEYS
    assert none["card"] is none["inference_s"] is none["demo_ok"] is none["peak_gb"] is None
    parts = {
        "training-large-cube": {"steps_s": 6.0, "gpu_busy_share": 0.9, "data_wait_share": 0.0, "peak_gb": 9.0},
        "training-large-cube-monai": {"steps_s": 4.0, "gpu_busy_share": 0.5, "data_wait_share": 0.3, "peak_gb": 8.0},
        "inference": {"body": {"warm_s": 2.0}, "localised": {"warm_s": 0.5}, "peak_gb": 12.0},
        "inference-monai": {"warm_s": 10.0},
        "inference-nnunet": {"skipped": "nnU-Net is not installed"},
    }
    found = script.report(parts, {"card": "A card", "torch": "2.11.0"})
    assert found["training_ratio"]["monai"]["cube"] == 1.5
    assert found["training_ratio"]["nnunet"]["cube"] is None
    assert (found["inference_ratio"]["monai"], found["inference_s"], found["localised_s"]) == (5.0, 2.0, 0.5)
    assert found["peak_gb"] == 12.0
    assert found["incomplete"] == {"inference-nnunet": "nnU-Net is not installed"}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_parts_run_with_tiny_networks() -> None:
    # Without the demo, which has its own tests and takes minutes on a CPU.
    parts = ("training-small-cube", "training-small-cube-monai", "training-large-flat", "inference", "inference-monai")
    command = [sys.executable, str(SCRIPT), "--json", "--tiny", "--threads=2", f"--only={','.join(parts)}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    *lines, last = [json.loads(line) for line in done.stdout.splitlines()]
    first, *lines = lines
    assert (first["part"], first["card"], first["torch"]) == ("prepare", last["card"], last["torch"])
    assert {line["part"] for line in lines} == set(parts)
    assert set(last["parts"]) == set(parts)
    assert set(last) >= KEYS
    assert last["incomplete"] == {}
    assert last["training_steps_s"]["small_cube"] > 0
    assert last["peer_steps_s"]["monai"]["small_cube"] > 0
    assert last["inference_s"] > 0
    assert last["parts"]["inference"]["logits_rmse_to_cpu"] < 1e-3
