"""Failpoints act when armed, in the order of execution, and never otherwise."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gtvray.errors import ConfigError
from gtvray.failpoints import ONCE_VARIABLE, POINTS, VARIABLE, arm, failpoint

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    arm("")


def test_nothing_happens_unless_armed() -> None:
    assert [failpoint(name) for name in POINTS] == [False] * len(POINTS)


def test_entry_acts_once_at_its_count_and_rank() -> None:
    arm("training.loss@1:2=nan")
    assert [failpoint("training.loss", rank) for rank in (0, 1, 0, 1, 1)] == [False, False, False, True, False]


def test_entries_count_independently() -> None:
    arm("training.loss=nan, training.loss:3=nan, checkpoint.write=raise")
    assert [failpoint("training.loss") for _ in range(4)] == [True, False, True, False]
    with pytest.raises(RuntimeError, match=re.escape("checkpoint.write=raise")):
        failpoint("checkpoint.write")


def test_injected_errors_are_system_errors() -> None:
    arm("checkpoint.write=enospc,training.before_step=memory")
    with pytest.raises(OSError) as full:  # noqa: PT011
        failpoint("checkpoint.write")
    assert full.value.errno == errno.ENOSPC
    with pytest.raises(MemoryError):
        failpoint("training.before_step")


@pytest.mark.parametrize(
    "text", ["training.loss", "training.loss=burn", "nowhere=kill", "training.loss:0=nan", "training.loss@x=nan"]
)
def test_malformed_entry_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="invalid failpoint") as caught:
        arm(text)
    assert caught.value.fields["found"] == text
    assert len(str(caught.value).splitlines()) <= 5


def test_entry_acts_once_over_processes(tmp_path: Path) -> None:
    program = "from gtvray.failpoints import failpoint\nfailpoint('training.before_step'); print('alive')"
    environment = {**os.environ, VARIABLE: "training.before_step=kill", ONCE_VARIABLE: str(tmp_path)}
    command = [sys.executable, "-c", program]
    first, second = (
        subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        for _ in range(2)
    )
    assert (first.returncode, first.stdout) == (-signal.SIGKILL, "")
    assert (second.returncode, second.stdout) == (0, "alive\n"), second.stderr


def test_every_failpoint_is_used_and_documented() -> None:
    sources = {path: path.read_text() for path in (REPOSITORY / "gtvray").rglob("*.py") if path.name != "failpoints.py"}
    passed = {name for text in sources.values() for name in re.findall(r'failpoint\("([a-z_.]+)"', text)}
    assert passed == set(POINTS)
