"""A command whose process is killed is run again with the same run id; one that ends by itself is not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gtvray.errors import InputError
from gtvray.runtime import RUN_ID_VARIABLE, given_run_id

IMPORT = "from gtvray.runtime.attempts import run_attempts"
PROGRAM = """
import os, signal, sys
from pathlib import Path
file, kills, code = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
with file.open("a") as out:
    out.write(os.environ["GTVRAY_RUN_ID"] + "\\n")
if len(file.read_text().splitlines()) <= kills:
    os.kill(os.getpid(), signal.SIGKILL)
sys.exit(code)
"""


def attempts(folder: Path, kills: int, code: int, retries: int) -> tuple[int, list[str], str]:
    """Exit code, run id of each attempt, and what was reported."""
    ask = f"import sys; {IMPORT}; sys.exit(run_attempts(sys.argv[2:], int(sys.argv[1])))"
    inner = [sys.executable, "-c", PROGRAM, str(folder / "runs"), str(kills), str(code)]
    command = [sys.executable, "-c", ask, str(retries), *inner]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, (folder / "runs").read_text().splitlines(), done.stderr


@pytest.mark.parametrize(
    ("kills", "code", "retries", "ended", "runs"),
    [(0, 0, 2, 0, 1), (1, 0, 2, 0, 2), (2, 1, 2, 1, 3), (3, 0, 2, 137, 3), (0, 1, 2, 1, 1), (0, 2, 5, 2, 1)],
)
def test_only_a_killed_process_is_run_again(
    tmp_path: Path, kills: int, code: int, retries: int, ended: int, runs: int
) -> None:
    found, ids, errors = attempts(tmp_path, kills, code, retries)
    assert (found, len(ids)) == (ended, runs), errors
    assert len(set(ids)) == 1
    if kills > retries:
        assert "killed by SIGKILL in attempt 3, the last" in errors
    elif kills:
        assert "killed by SIGKILL in attempt 1 of 3; continuing" in errors


def test_a_stopped_command_is_not_run_again(tmp_path: Path) -> None:
    script = 'echo run >>"$0"; exec sleep 60'
    ask = f"{IMPORT}; run_attempts(['sh', '-c', {script!r}, {str(tmp_path / 'runs')!r}], 5)"
    with subprocess.Popen([sys.executable, "-c", ask]) as running:
        while not (tmp_path / "runs").exists():
            time.sleep(0.05)
        running.send_signal(signal.SIGTERM)
        running.wait(30)
    assert (tmp_path / "runs").read_text() == "run\n"


def test_run_ids_are_parts_of_file_names(monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("../x", "a b", ".hidden", "x" * 65):
        monkeypatch.setenv(RUN_ID_VARIABLE, text)
        with pytest.raises(InputError, match="invalid run id"):
            given_run_id()
    monkeypatch.setenv(RUN_ID_VARIABLE, "liver-2.1_b")
    assert given_run_id() == "liver-2.1_b"
    assert os.environ.pop(RUN_ID_VARIABLE)
    assert given_run_id() is None
