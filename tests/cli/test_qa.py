"""`gtvray qa` and `gtvray serve` on a host that gives a model's golden cases the masks of its promotion, or others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gtvray.geometry import Volume
from gtvray.models import Bundle
from gtvray.runtime import Cluster

from ..bundles import random_bundle
from ..golden_cases import made_golden, spoil
from .command import free_port, run


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return random_bundle(tmp_path_factory.mktemp("qa") / "bundle", seed=0)


@pytest.fixture
def golden(bundle: Bundle, tmp_path: Path) -> Path:
    """Two golden cases where the workspace has them."""
    scans = []
    for level in (40, 60):
        hu = np.full((24, 24, 24), level, np.int16)
        hu[:3] = -1000
        scans.append(Volume(hu, np.diag([-4.0, -4, 4, 1])))
    return made_golden(tmp_path / "golden" / bundle.digest[:16], bundle, scans)


def test_qa_tells_by_its_exit_code(golden: Path, bundle: Bundle, tmp_path: Path) -> None:
    words = ("qa", "--model", bundle.folder, "--workspace", tmp_path, "--json")
    done = run(*words)
    assert done.code == 0, done
    told = done.json()
    assert (told["ok"], told["identical"], len(told["cases"])) == (True, True, 2)
    assert told["stack"]["torch"]
    spoil(golden, 1)
    failed = run(*words)
    assert failed.code == 1
    told = failed.json()
    assert (told["ok"], [case["identical"] for case in told["cases"]]) == (False, [True, False])


def test_qa_needs_golden_cases(bundle: Bundle, tmp_path: Path) -> None:
    assert "no golden cases" in run("qa", "--model", bundle.folder, "--workspace", tmp_path).error(code=2)


@pytest.mark.ray
def test_serve_ends_where_golden_cases_are_not_reproduced(
    golden: Path, bundle: Bundle, tmp_path: Path, local_ray: Cluster
) -> None:
    spoil(golden, 1)
    place = ("--workspace", tmp_path, "--port", free_port(), "--address", local_ray.address)
    error = run("serve", "--model", bundle.folder, *place).error(code=1)
    assert "golden cases are not reproduced" in error
    assert "golden case 1: Dice 0." in error
    assert "golden case 0" not in error
