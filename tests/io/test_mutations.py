"""Mutation fuzzing: each damaged file gives a volume or an InputError, and detectable damage is not accepted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HARNESS = Path(__file__).with_name("mutate.py")
# Several times the decompressed size of the largest damaged file, but far less than the sizes in damaged headers.
MOST_GROWTH_MB = 64


def _report(seed: int, count: int) -> dict[str, Any]:
    """Run the fuzzer in a separate process, which may allocate 256 MiB and turns warnings into errors."""
    command = [sys.executable, "-W", "error", str(HARNESS), str(seed), "0", str(count)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr == "", "a warning was printed"
    report: dict[str, Any] = json.loads(done.stdout)
    assert sum(report["accepted"].values()) + sum(report["refused"].values()) + len(report["crashed"]) == count
    return report


@pytest.mark.parametrize(("seed", "count"), [(1, 1000), pytest.param(2, 10_000, marks=pytest.mark.slow)])
def test_damage_is_rejected_or_leaves_redundant_content_unchanged(seed: int, count: int) -> None:
    report = _report(seed, count)
    assert report["crashed"] == []
    assert report["silent"] == []
    assert report["grown_mb"] < MOST_GROWTH_MB
    # Every kind of damage is refused sometimes, and several kinds are accepted sometimes.
    kinds = ["flip", "cut", "append", "field", "swap", "zero", "delete", "repeat"]
    for kind in [*kinds, *(f"inner {kind}" for kind in kinds)]:
        assert report["refused"].get(kind, 0) > count / 500, kind
    for kind in ["flip", "field", "swap", "zero", "inner flip", "inner field"]:
        assert report["accepted"].get(kind, 0) > count / 500, kind
