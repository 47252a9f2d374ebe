"""`gtvray predict --server`: several scans at once, and as a job, against servers without a model."""

from __future__ import annotations

import socket
from pathlib import Path

import numpy as np
import pytest

from gtvray.errors import AuthError
from gtvray.io import read_volume, write_volume

from ..serving.client.test_client_retry import Scripted, running
from ..serving.conftest import TOKEN, make_scan
from ..serving.jobs.conftest import build_jobs_app
from .command import Running, call, run


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    for number in range(5):
        write_volume(tmp_path / "scans" / f"{number}.nii.gz", make_scan((12 + number, 14, 16), seed=number))
    (tmp_path / "scans" / "5.nii.gz").write_bytes(b"a sentence")
    return tmp_path / "scans"


@pytest.mark.parametrize("as_job", [False, True])
def test_many_scans_and_one_that_fails(scans: Path, tmp_path: Path, as_job: bool) -> None:
    app = build_jobs_app(tmp_path / "jobs") if as_job else Scripted()
    with running(app) as url:
        words = ["--server", url, "--token", TOKEN, "--json", *(["--jobs"] if as_job else ["--at-once", "3"])]
        finished = call("predict", scans, "-o", tmp_path / "masks", *words)
    assert finished.code == 1, finished
    rows = finished.json()["masks"]
    assert [row["scan"] for row in rows] == [str(number) for number in range(5)]
    for number, row in enumerate(rows):
        scan, mask = read_volume(scans / f"{number}.nii.gz"), read_volume(Path(row["mask"]))
        assert mask.same_grid(scan)
        assert np.array_equal(mask.array, scan.array > 0)
    assert [row["scan"] for row in finished.json()["failed"]] == ["5"]
    if as_job:
        assert not list((tmp_path / "jobs" / "files").rglob("mask-*")), "its results are deleted on the server"
    else:
        assert app.most_at_once == 3  # type: ignore[attr-defined]


def test_jobs_need_a_server(scans: Path, tmp_path: Path) -> None:
    assert "--jobs without --server" in call("predict", scans, "-o", tmp_path / "m", "--jobs").error(code=2)


def test_refused_scan_ends_the_command(scans: Path, tmp_path: Path) -> None:
    """The client is closed before the interpreter shuts down, when its thread could no longer be joined."""
    with running(Scripted(AuthError("the token is not valid"))) as url:
        refused = run(
            "predict", scans / "0.nii.gz", "-o", tmp_path / "m.nii.gz", "--server", url, within_s=60, GTVRAY_TOKEN=TOKEN
        )
    assert "the token is not valid" in refused.error(code=2)


def test_interrupt_does_not_wait_for_the_answer(scans: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        asking = Running("predict", scans, "-o", tmp_path / "masks", "--server", url, GTVRAY_TOKEN=TOKEN)
        connection, _ = silent.accept()
        asking.interrupt()
        ended = asking.end(within_s=30)
        connection.close()
    assert ended.code == 1
    assert "interrupted" in ended.stderr
    assert not (tmp_path / "masks").exists() or not list((tmp_path / "masks").iterdir())
