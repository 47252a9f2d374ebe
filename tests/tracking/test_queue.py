"""The queue on disk: in order, none lost, none twice, whatever happens to either side."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from gtvray.tracking import MetricQueue

Entry = dict[str, object]


class Store:
    """Takes entries, or refuses them while it is away; `whole` is set once `expected` have arrived."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.away = threading.Event()
        self.refused = threading.Event()

    def deliver(self, entries: list[Entry]) -> None:
        if self.away.is_set():
            self.refused.set()
            raise ConnectionError("away")
        self.entries += entries


@pytest.fixture
def store() -> Store:
    return Store()


def numbers(store: Store) -> list[object]:
    return [entry["n"] for entry in store.entries]


def test_entries_arrive_in_order(tmp_path: Path, store: Store) -> None:
    spool = MetricQueue(tmp_path / "deep" / "spool.jsonl", store.deliver)
    for n in range(200):
        spool.put({"n": n, "text": "Größe\n\u2028\x85 = 3"})
    assert spool.close(20)
    assert numbers(store) == list(range(200))
    assert store.entries[0]["text"] == "Größe\n\u2028\x85 = 3"


def test_an_absence_is_bridged(tmp_path: Path, store: Store) -> None:
    spool = MetricQueue(tmp_path / "spool.jsonl", store.deliver)
    spool.put({"n": 0})
    assert spool.flush(20)
    store.away.set()
    for n in range(1, 50):
        spool.put({"n": n})
    assert store.refused.wait(20)
    assert not spool.flush(0.1)
    assert spool.last_error == "away"
    store.away.clear()
    spool.put({"n": 50})
    assert spool.close(30)
    assert numbers(store) == list(range(51))


def test_what_was_not_delivered_waits_for_the_next_process(tmp_path: Path, store: Store) -> None:
    spool = MetricQueue(tmp_path / "spool.jsonl", store.deliver)
    spool.put({"n": 0})
    assert spool.flush(20)
    store.away.set()
    spool.put({"n": 1})
    assert store.refused.wait(20)
    assert not spool.close(0.1)
    assert numbers(store) == [0]
    store.away.clear()
    again = MetricQueue(tmp_path / "spool.jsonl", store.deliver)
    assert again.flush(20)
    again.put({"n": 2})
    assert again.close(20)
    assert numbers(store) == [0, 1, 2]


def test_an_entry_is_on_disk_when_put_returns(tmp_path: Path, store: Store) -> None:
    """A process that is killed at once has lost nothing."""
    program = (
        "import os, signal, sys, pathlib\n"
        "from gtvray.tracking import MetricQueue\n"
        "def refuse(_): raise ConnectionError\n"
        "spool = MetricQueue(pathlib.Path(sys.argv[1]), refuse)\n"
        "for n in range(20): spool.put({'n': n})\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(tmp_path / "s.jsonl")], timeout=60, check=False)
    assert killed.returncode == -9
    assert MetricQueue(tmp_path / "s.jsonl", store.deliver).close(20)
    assert numbers(store) == list(range(20))


@pytest.mark.parametrize("tail", ['{"n": 1', '{"n": "ü'.encode()[:-1].decode("latin-1"), "{"])
def test_a_line_that_a_crash_cut_off_is_dropped_alone(tmp_path: Path, store: Store, tail: str) -> None:
    path = tmp_path / "spool.jsonl"
    path.write_bytes(json.dumps({"n": 0}).encode() + b"\n" + tail.encode("latin-1"))
    spool = MetricQueue(path, store.deliver)
    spool.put({"n": 2})
    assert spool.close(20)
    assert numbers(store) == [0, 2]


def test_a_mark_that_cannot_be_written_is_tried_again(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the disk is full for a while: entries come again, and the thread lives on."""
    failing = threading.Event()
    failing.set()
    write: Callable[..., int] = Path.write_text

    def write_text(self: Path, text: str) -> int:
        if failing.is_set():
            failing.clear()
            raise OSError("no space left on device")
        return write(self, text)

    monkeypatch.setattr(Path, "write_text", write_text)
    spool = MetricQueue(tmp_path / "spool.jsonl", store.deliver)
    spool.put({"n": 0})
    assert spool.flush(20)
    spool.put({"n": 1})
    assert spool.close(20)
    assert numbers(store) == [0, 0, 1]
