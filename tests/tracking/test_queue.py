"""The durable queue: in order, complete, without duplicates, across outages and crashes."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from gtvray.failpoints import arm
from gtvray.tracking import MetricQueue, Rejection, read_rejections

Entry = dict[str, object]


class Store:
    """A consumer that raises while it is `down`, and then sets `refused`; it never accepts the numbers in `bad`."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.down = threading.Event()
        self.refused = threading.Event()
        self.bad: set[object] = set()

    def deliver(self, entries: list[Entry]) -> list[Rejection]:
        if self.down.is_set():
            self.refused.set()
            raise ConnectionError("server is down")
        self.entries += [entry for entry in entries if entry["n"] not in self.bad]
        return [Rejection(entry, f"{entry['n']} is bad") for entry in entries if entry["n"] in self.bad]


@pytest.fixture
def store() -> Store:
    return Store()


def numbers(store: Store) -> list[object]:
    return [entry["n"] for entry in store.entries]


def test_entries_are_delivered_in_order(tmp_path: Path, store: Store) -> None:
    queue = MetricQueue(tmp_path / "deep" / "spool.jsonl", store.deliver)
    for n in range(200):
        queue.put({"n": n, "text": "Größe\n\u2028\x85 = 3"})
    assert queue.close(20)
    assert numbers(store) == list(range(200))
    assert store.entries[0]["text"] == "Größe\n\u2028\x85 = 3"


def test_outage_is_buffered_and_reported_once(tmp_path: Path, store: Store, caplog: pytest.LogCaptureFixture) -> None:
    queue = MetricQueue(tmp_path / "spool.jsonl", store.deliver)
    queue.put({"n": 0})
    assert queue.flush(20)
    store.down.set()
    for n in range(1, 50):
        queue.put({"n": n})
    assert store.refused.wait(20)
    assert not queue.flush(0.1)
    (warning,) = caplog.messages
    assert "server is down" in warning
    assert str(tmp_path / "spool.jsonl") in warning
    store.down.clear()
    queue.put({"n": 50})
    assert queue.close(30)
    assert numbers(store) == list(range(51))


def test_delivery_in_progress_is_waited_for_beyond_the_timeout(tmp_path: Path) -> None:
    """As the upload of a bundle, which takes longer than an outage is waited for."""
    began, go_on = threading.Event(), threading.Event()

    def upload(entries: list[Entry]) -> list[Rejection]:
        began.set()
        assert go_on.wait(20)
        return []

    queue = MetricQueue(tmp_path / "spool.jsonl", upload)
    queue.put({"n": 0})
    assert began.wait(20)
    threading.Timer(1.0, go_on.set).start()
    assert queue.close(0.01)


def test_undelivered_entries_are_delivered_by_the_next_process(tmp_path: Path, store: Store) -> None:
    queue = MetricQueue(tmp_path / "spool.jsonl", store.deliver)
    queue.put({"n": 0})
    assert queue.flush(20)
    store.down.set()
    queue.put({"n": 1})
    assert store.refused.wait(20)
    assert not queue.close(0.1)
    assert numbers(store) == [0]
    store.down.clear()
    again = MetricQueue(tmp_path / "spool.jsonl", store.deliver)
    assert again.flush(20)
    again.put({"n": 2})
    assert again.close(20)
    assert numbers(store) == [0, 1, 2]


def test_entries_that_are_never_accepted_are_set_aside_and_sent_again_on_request(tmp_path: Path, store: Store) -> None:
    path = tmp_path / "spool.jsonl"
    store.bad = {0, 120, 121}
    queue = MetricQueue(path, store.deliver)
    for n in range(250):
        queue.put({"n": n})
    assert queue.close(20)
    accepted = [n for n in range(250) if n not in store.bad]
    assert numbers(store) == accepted
    expected = [Rejection({"n": n}, f"{n} is bad") for n in (0, 120, 121)]
    assert read_rejections(path) == expected
    assert MetricQueue(path, store.deliver).close(20)
    assert (numbers(store), read_rejections(path)) == (accepted, expected), "a further process sends nothing by itself"
    # One of them can be accepted now; the others are set aside once, although they are delivered a second time.
    store.bad.remove(120)
    assert MetricQueue(path, store.deliver, again=True).close(20)
    assert numbers(store)[len(accepted) :] == [n for n in range(250) if n not in store.bad]
    assert read_rejections(path) == [expected[0], expected[2]]


@pytest.mark.parametrize("point", ["tracking.before_delivery", "tracking.after_delivery"])
def test_crash_before_the_mark_sets_an_entry_aside_once(tmp_path: Path, store: Store, point: str) -> None:
    store.bad = {1}
    arm(f"{point}=raise")
    queue = MetricQueue(tmp_path / "spool.jsonl", store.deliver)
    for n in range(3):
        queue.put({"n": n})
    assert queue.close(20)
    assert sorted(set(map(str, numbers(store)))) == ["0", "2"]
    assert len(read_rejections(tmp_path / "spool.jsonl")) == 1


def test_damaged_lines_and_marks_stop_nothing(tmp_path: Path, store: Store) -> None:
    path = tmp_path / "spool.jsonl"
    path.write_bytes(b'{"n": 0}\n\0\0\0\n{"n": \xff\n[3]\n\n{"n": 1}\n')
    queue = MetricQueue(path, store.deliver)
    queue.put({"n": 2})
    assert queue.close(20)
    assert numbers(store) == [0, 1, 2]
    assert [rejection.entry["line"] for rejection in read_rejections(path)] == ['{"n": \ufffd', "[3]"]
    for mark in ("", "none", "999999"):
        path.with_suffix(".mark").write_text(mark)
        store.entries.clear()
        assert MetricQueue(path, store.deliver).close(20)
        assert numbers(store) == [0, 1, 2], mark


def test_entry_is_on_disk_when_put_returns(tmp_path: Path, store: Store) -> None:
    """A process killed right after `put` loses no entry."""
    program = (
        "import os, signal, sys, pathlib\n"
        "from gtvray.tracking import MetricQueue\n"
        "def refuse(_): raise ConnectionError\n"
        "queue = MetricQueue(pathlib.Path(sys.argv[1]), refuse)\n"
        "for n in range(20): queue.put({'n': n})\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(tmp_path / "s.jsonl")], timeout=60, check=False)
    assert killed.returncode == -9
    assert MetricQueue(tmp_path / "s.jsonl", store.deliver).close(20)
    assert numbers(store) == list(range(20))


@pytest.mark.parametrize("tail", ['{"n": 1', '{"n": "ü'.encode()[:-1].decode("latin-1"), "{"])
def test_only_a_truncated_last_line_is_dropped(tmp_path: Path, store: Store, tail: str) -> None:
    path = tmp_path / "spool.jsonl"
    path.write_bytes(json.dumps({"n": 0}).encode() + b"\n" + tail.encode("latin-1"))
    queue = MetricQueue(path, store.deliver)
    queue.put({"n": 2})
    assert queue.close(20)
    assert numbers(store) == [0, 2]


def test_failed_write_of_the_mark_is_retried(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a full disk: entries are delivered again, and the thread keeps running."""
    failing = threading.Event()
    failing.set()
    write: Callable[..., int] = Path.write_text

    def write_text(self: Path, text: str) -> int:
        if failing.is_set():
            failing.clear()
            raise OSError("no space left on device")
        return write(self, text)

    monkeypatch.setattr(Path, "write_text", write_text)
    queue = MetricQueue(tmp_path / "spool.jsonl", store.deliver)
    queue.put({"n": 0})
    assert queue.flush(20)
    queue.put({"n": 1})
    assert queue.close(20)
    assert numbers(store) == [0, 0, 1]
