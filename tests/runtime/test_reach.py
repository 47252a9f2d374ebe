"""The paths of a submitted command that the cluster must have, and how their absence is reported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from gtvray.runtime.reach import MODULE, Looked, Needed, missing, needed_by, read_result


@pytest.mark.parametrize(
    ("command", "read", "written", "everywhere"),
    [
        (
            "sweep settings/1/space.yaml --data /d --workspace=/w/runs optimizer.lr=1 --json",
            ("/d",),
            ("/w/runs",),
            True,
        ),
        ("sweep /d/space.yaml --data=/d -s tracking.uri=sqlite:////x", ("/d/space.yaml", "/d"), (), True),
        ("predict --data=/unused /scans -o /masks", ("/unused", "/scans"), ("/masks",), True),
        ("predict --json /scans --model /m", ("/scans",), (), True),
        ("evaluate --data /d --baseline /b --model champion", ("/d", "/b"), (), False),
        ("data import --layout nnunet /a /b", ("/a",), ("/b",), False),
        ("data check s3://bucket/data", (), (), False),
        ("doctor --cluster", (), (), False),
    ],
)
def test_paths_that_a_command_needs(
    command: str, read: tuple[str, ...], written: tuple[str, ...], everywhere: bool
) -> None:
    assert needed_by(command.split()) == Needed(read, written, everywhere)


def test_missing_paths_and_missing_parents_are_found(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    there, gone = str(tmp_path / "data"), str(tmp_path / "gone")
    assert missing([there], [there, str(tmp_path / "runs")]) == []
    assert missing([gone], [f"{gone}/runs"]) == [gone, gone]


def test_the_job_reports_the_path_and_the_node(tmp_path: Path) -> None:
    gone = str(tmp_path / "gone é")
    done = subprocess.run(
        [sys.executable, "-m", MODULE, Needed((gone,), (), False).as_json()],
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    assert read_result(f"before\n{done.stdout}") == Looked((f"{gone} on the head",))
    assert read_result(f"before\n{json.dumps([gone])}\n") is None, "other lines are no result"
