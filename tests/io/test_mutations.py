"""Damaged files in great number: each gives a volume or an InputError, and what is damaged is not taken for good."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HARNESS = Path(__file__).with_name("mutate.py")
# More than the largest damaged file inflates to, several times; far less than the headers promise.
MOST_GROWTH_MB = 64


def _report(seed: int, count: int) -> dict[str, Any]:
    """In a process of its own, which has 256 MiB to grow by and takes every warning for an error."""
    command = [sys.executable, "-W", "error", str(HARNESS), str(seed), "0", str(count)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr == "", "something warned"
    report: dict[str, Any] = json.loads(done.stdout)
    assert sum(report["accepted"].values()) + sum(report["refused"].values()) + len(report["crashed"]) == count
    return report


@pytest.mark.parametrize(("seed", "count"), [(1, 1000), pytest.param(2, 10_000, marks=pytest.mark.slow)])
def test_damage_is_refused_by_name_or_changes_nothing_that_is_said_twice(seed: int, count: int) -> None:
    report = _report(seed, count)
    assert report["crashed"] == []
    assert report["silent"] == []
    assert report["grown_mb"] < MOST_GROWTH_MB
    # It is not all refused for one reason, nor is any kind of damage left out.
    kinds = ["flip", "cut", "append", "field", "swap", "zero", "delete", "repeat"]
    for kind in [*kinds, *(f"inner {kind}" for kind in kinds)]:
        assert report["refused"].get(kind, 0) > count / 500, kind
    for kind in ["flip", "field", "swap", "zero", "inner flip", "inner field"]:
        assert report["accepted"].get(kind, 0) > count / 500, kind
