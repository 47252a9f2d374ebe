"""Overlapped loading, running and storing: order, bounds, errors and interrupts."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from gtvray.errors import GtvrayError, InputError, ResourceError
from gtvray.inference import overlapped
from gtvray.inference.pipeline import AHEAD, BEHIND


def test_results_are_ordered_and_errors_are_isolated() -> None:
    def load(key: int) -> int:
        if key == 1:
            raise InputError("cannot be read")
        return key

    def run(loaded: int) -> int:
        if loaded == 3:
            raise InputError("cannot be run")
        return 10 * loaded

    def store(key: int, ran: int) -> str:
        if key == 4:
            raise ResourceError("cannot be written")
        return f"{key}: {ran}"

    found = dict(overlapped(range(6), load, run, store))
    assert list(found) == list(range(6))
    assert [found[key] for key in (0, 2, 5)] == ["0: 0", "2: 20", "5: 50"]
    assert [str(found[key]) for key in (1, 3, 4)] == ["cannot be read", "cannot be run", "cannot be written"]
    assert list(overlapped([], load, run, store)) == []


def test_unexpected_error_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        list(overlapped([1, 0], lambda key: key, lambda loaded: 1 / loaded, lambda key, ran: ran))


def test_loading_ahead_is_bounded() -> None:
    loaded: list[int] = []
    most = []

    def run(key: int) -> int:
        most.append(len(loaded) - key)
        return key

    def load(key: int) -> int:
        loaded.append(key)
        return key

    for key, _ in overlapped(range(20), load, run, lambda key, ran: ran):
        # Yielded, being stored, running, and waiting to run.
        assert len(loaded) <= key + 1 + BEHIND + AHEAD
    assert max(most) <= 1 + AHEAD


def test_loading_and_storing_overlap_with_running() -> None:
    """Each stage waits for the others: without overlap the test would time out."""
    loading, storing = [threading.Event() for _ in range(4)], [threading.Event() for _ in range(4)]

    def load(key: int) -> int:
        loading[key].set()
        return key

    def run(key: int) -> int:
        if key < 3:
            assert loading[key + 1].wait(60)
        if key > 0:
            assert storing[key - 1].wait(60)
        return key

    def store(key: int, ran: int) -> int:
        storing[key].set()
        return ran

    assert [outcome for _, outcome in overlapped(range(4), load, run, store)] == [0, 1, 2, 3]


def test_interrupt_completes_the_store_in_progress_and_starts_nothing(tmp_path: Path) -> None:
    began, go_on, loaded = threading.Event(), threading.Event(), []

    def run(key: int) -> int:
        if key == 1:
            # The first is being stored when Ctrl-C arrives.
            assert began.wait(60)
            go_on.set()
            raise KeyboardInterrupt
        return key

    def store(key: int, ran: int) -> None:
        began.set()
        assert go_on.wait(60)
        (tmp_path / str(key)).write_text("whole")

    with pytest.raises(KeyboardInterrupt):
        list(overlapped(range(9), lambda key: loaded.append(key) or key, run, store))
    assert [path.name for path in tmp_path.iterdir()] == ["0"]
    assert max(loaded) <= 1 + AHEAD


def test_error_object_is_yielded_unchanged() -> None:
    error = InputError("no", where="scan 7")

    def load(key: int) -> int:
        raise error

    ((_, found),) = overlapped([7], load, lambda loaded: loaded, lambda key, ran: ran)
    assert isinstance(found, GtvrayError)
    assert found is error
