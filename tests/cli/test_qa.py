"""`gtvray qa` and `gtvray serve` on hosts that do and do not reproduce a model's golden cases."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gtvray.geometry import Volume
from gtvray.models import Bundle
from gtvray.runtime import Cluster

from ..bundles import random_bundle
from ..golden_cases import made_golden, spoil
from ..ports import free_port
from .command import run

# In one process, so that the shared bundle is created once.
pytestmark = pytest.mark.xdist_group("ray")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return random_bundle(tmp_path_factory.mktemp("qa") / "bundle", seed=0)


@pytest.fixture
def golden(bundle: Bundle, tmp_path: Path) -> Path:
    """Two golden cases in the workspace."""
    scans = []
    for level in (40, 60):
        hu = np.full((24, 24, 24), level, np.int16)
        hu[:3] = -1000
        scans.append(Volume(hu, np.diag([-4.0, -4, 4, 1])))
    return made_golden(tmp_path / "golden" / bundle.digest[:16], bundle, scans)


@pytest.mark.slow
def test_qa_exit_code_reports_whether_golden_cases_are_reproduced(golden: Path, bundle: Bundle, tmp_path: Path) -> None:
    arguments = ("qa", "--model", bundle.folder, "--workspace", tmp_path, "--json")
    done = run(*arguments)
    assert done.code == 0, done
    report = done.json()
    assert (report["ok"], report["identical"], len(report["cases"])) == (True, True, 2)
    assert report["stack"]["torch"]
    spoil(golden, 1)
    failed = run(*arguments)
    assert failed.code == 1
    report = failed.json()
    assert (report["ok"], [case["identical"] for case in report["cases"]]) == (False, [True, False])


@pytest.mark.slow
def test_qa_needs_golden_cases(bundle: Bundle, tmp_path: Path) -> None:
    assert "no golden cases" in run("qa", "--model", bundle.folder, "--workspace", tmp_path).error(code=2)


@pytest.mark.ray
@pytest.mark.slow
def test_serve_exits_if_golden_cases_are_not_reproduced(
    golden: Path, bundle: Bundle, tmp_path: Path, local_ray: Cluster
) -> None:
    spoil(golden, 1)
    options = ("--workspace", tmp_path, "--port", free_port(), "--address", local_ray.address)
    error = run("serve", "--model", bundle.folder, *options).error(code=1)
    assert "golden cases are not reproduced" in error
    assert "golden case 1: Dice 0." in error
    assert "golden case 0" not in error
