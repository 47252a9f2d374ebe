"""A replica becomes ready only if it reproduces its model's golden cases."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest

from gtvray.errors import BundleError, NotReproducedError
from gtvray.inference import Predictor
from gtvray.io import read_json, read_volume, sha256_of, write_json, write_volume
from gtvray.models import Bundle
from gtvray.serving import Server, build_app
from gtvray.serving.arguments import TOKEN_VARIABLE
from gtvray.serving.replica.golden import check_golden

from ...golden_cases import made_golden, spoil
from ..conftest import TOKEN, log_lines, make_scan, predict_remote

BEARER = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def made(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    scans = [make_scan((30 + 6 * n, 32, 24), seed=n) for n in range(2)]
    return made_golden(tmp_path_factory.mktemp("golden") / "made", bundle, scans)


@pytest.fixture
def golden(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "golden"))


@pytest.mark.ray
def test_replica_that_does_not_reproduce_golden_cases_stays_unready_and_reports_them(
    start: Callable[..., Server], bundle: Bundle, golden: Path
) -> None:
    spoil(golden, 1)
    # Other models of the session have written to the same log folder.
    before = log_lines("Model", "result=identical")
    server = start(bundle, golden=golden, wait=False)
    with pytest.raises(NotReproducedError, match="golden cases are not reproduced") as refused:
        server.wait_ready(100)
    assert re.match(r"golden case 1: Dice 0\.\d+; each must reach 0\.999", refused.value.fields["found"])
    for path in ("/readyz", "/v1/model"):
        answer = httpx.get(server.url + path, headers=BEARER)
        assert (answer.status_code, answer.headers["content-type"]) == (503, "application/problem+json")
        problem = answer.json()
        assert problem["type"] == "urn:gtvray:NotReproducedError"
        assert problem["found"] == refused.value.fields["found"]
        assert "Retry-After" not in answer.headers, "retrying does not help"
    with pytest.raises(NotReproducedError, match="golden cases are not reproduced"):
        predict_remote(server.url, TOKEN, make_scan((20, 20, 20)))
    assert httpx.get(f"{server.url}/healthz").status_code == 200
    assert any("case=1 dice=0." in line for line in log_lines("Model", "event=golden_case"))
    assert log_lines("Model", "result=identical") == before
    server.stop()


@pytest.mark.slow
@pytest.mark.ray
def test_replica_that_reproduces_golden_cases_is_ready(
    start: Callable[..., Server], bundle: Bundle, golden: Path
) -> None:
    server = start(bundle, golden=golden)
    assert httpx.get(f"{server.url}/readyz").json() == {"status": "ready", "golden": "identical"}
    assert httpx.get(f"{server.url}/v1/model", headers=BEARER).json()["golden"] == "identical"
    assert predict_remote(server.url, TOKEN, make_scan((20, 20, 20))).patches > 0
    assert log_lines("Model", "event=golden request=start result=identical")
    server.stop()


def test_masks_within_the_tolerance_pass_as_reproduced(bundle: Bundle, golden: Path) -> None:
    mask = golden / "mask-0.nii.gz"
    promoted = read_volume(mask)
    marked = np.argwhere(promoted.array)
    assert len(marked) > 2000
    other = promoted.array.copy()
    other[tuple(marked[0])] = 0
    write_volume(mask, promoted.with_array(other))
    index = read_json(golden / "golden.json")
    write_json(golden / "golden.json", {**index, "files": {**index["files"], mask.name: sha256_of(mask)}})
    check = check_golden(golden, Predictor(bundle, threads=1))
    assert check.outcome == "reproduced"
    check.require()


@pytest.mark.parametrize("fault", ["damaged", "missing", "other model"])
def test_invalid_golden_cases_fail_the_check_without_revealing_a_path(bundle: Bundle, golden: Path, fault: str) -> None:
    if fault == "damaged":
        (golden / "scan-0.nii.gz").write_bytes(b"cut")
    elif fault == "missing":
        (golden / "mask-1.nii.gz").unlink()
    else:
        write_json(golden / "golden.json", {**read_json(golden / "golden.json"), "digest": "0" * 64})
    check = check_golden(golden, Predictor(bundle, threads=1))
    assert check.outcome == "failed"
    with pytest.raises(NotReproducedError) as refused:
        check.require()
    assert str(golden.parent) not in str(refused.value)


def test_folder_without_golden_cases_is_rejected_before_deployment(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    with pytest.raises(BundleError, match="no golden cases in this folder"):
        build_app({"bundle": bundle.folder, "golden": tmp_path})
