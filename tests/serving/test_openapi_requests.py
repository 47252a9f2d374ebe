"""Requests that Schemathesis makes from the OpenAPI document, valid and invalid, against an endpoint on a local Ray."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gtvray.config import JobsConfig
from gtvray.io import write_volume
from gtvray.models import Bundle
from gtvray.serving import Server

from .conftest import TOKEN, make_scan

pytestmark = [pytest.mark.ray, pytest.mark.slow]
HOOKS = Path(__file__).with_name("schemathesis_hooks.py")
# A job that was cancelled stays visible, in this state, until it expires. The only required header is the token, which
# Schemathesis sends with every request; `ignored_auth` sends it without and with a wrong one.
EXCLUDED = "use_after_free,missing_required_header"


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same small scan in each format, which a job may also name by its path."""
    folder = tmp_path_factory.mktemp("scans")
    for name in ("scan.nii", "scan.nii.gz", "scan.nrrd"):
        write_volume(folder / name, make_scan((24, 24, 24)))
    return folder


def test_answers_conform_to_the_openapi_document(
    start: Callable[..., Server], bundle: Bundle, scans: Path, tmp_path: Path
) -> None:
    pytest.importorskip("schemathesis")
    server = start(
        bundle,
        jobs_dir=tmp_path / "jobs",
        client_requests_per_minute=1_000_000,
        jobs=JobsConfig(roots=(scans,)),
    )
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "--no-color", "run", f"{server.url}/openapi.json"),
        *("--header", f"Authorization: Bearer {TOKEN}", "--exclude-checks", EXCLUDED),
        *("--phases", "coverage,fuzzing,stateful", "--max-examples", "12", "--seed", "1", "--no-shrink"),
        *("--generation-database", "none", "--continue-on-failure", "--request-timeout", "60"),
    ]
    environment = {
        **os.environ,
        "PYTHONPATH": str(HOOKS.parent),
        "SCHEMATHESIS_HOOKS": HOOKS.stem,
        "GTVRAY_TEST_SCANS": str(scans),
    }
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=220, check=False
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert "14 selected / 14 total" in done.stdout, "every route of the document is requested"
    assert "Missing test data" not in done.stdout, "jobs are found by requests that need one"
