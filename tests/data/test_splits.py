"""Splits and the ledger: no case on two sides, no look forgotten."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gtvray.config import SplitConfig
from gtvray.data import Ledger, Split, split_cases
from gtvray.errors import DataError


@given(st.integers(6, 300), st.integers(0, 50), st.floats(0.05, 0.4), st.floats(0.05, 0.4))
def test_every_case_is_in_one_part_and_again_in_the_same(
    count: int, seed: int, selection: float, held_out: float
) -> None:
    config = SplitConfig(seed=seed, selection_share=selection, held_out_share=held_out)
    ids = tuple(f"pt_{n}" for n in range(count))
    if count - max(3, round(count * held_out)) - max(1, round(count * selection)) < 2:
        with pytest.raises(DataError, match="too few"):
            split_cases(ids, config)
        return
    split = split_cases(ids, config)
    assert sorted((*split.train, *split.selection, *split.held_out)) == sorted(ids)
    assert split == split_cases(ids, config)
    assert len(split.held_out) == max(3, round(count * held_out))
    assert len(split.selection) == max(1, round(count * selection))
    assert len(split.train) >= 2


def test_the_seed_decides() -> None:
    ids = tuple(map(str, range(20)))
    assert len({split_cases(ids, SplitConfig(seed=seed)).held_out for seed in range(10)}) == 10


@pytest.mark.parametrize("count", range(6))
def test_too_few_cases_are_refused(count: int) -> None:
    with pytest.raises(DataError, match="too few"):
        split_cases(tuple(map(str, range(count))), SplitConfig())


def test_a_case_on_two_sides_is_refused() -> None:
    with pytest.raises(DataError, match="two sides") as caught:
        Split(("a", "b"), ("b",), ("c",))
    assert "'b'" in caught.value.fields["found"]
    with pytest.raises(DataError):
        split_cases(("a",) * 10, SplitConfig())


def test_a_split_is_kept_with_its_data(tmp_path: Path) -> None:
    split = split_cases(tuple(map(str, range(9))), SplitConfig())
    split.save(tmp_path / "split.json", "digest")
    assert Split.load(tmp_path / "split.json") == (split, "digest")


def test_the_ledger_counts_subjects_that_saw_the_same_cases(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "new" / "looks.jsonl")
    assert ledger.looks() == []
    assert ledger.record("promotion", "a", ("1", "2"), "d") == 1
    assert ledger.record("promotion", "a", ("1", "2"), "d") == 1
    assert ledger.record("promotion", "b", ("2", "3"), "d") == 2
    assert ledger.record("promotion", "c", ("9",), "d") == 1
    assert ledger.record("report", "c", ("1", "2"), "d") == 1
    assert ledger.record("promotion", "c", ("1", "2"), "other") == 1
    assert ledger.record("promotion", "e", ("2",), "d") == 3
    looks = Ledger(tmp_path / "new" / "looks.jsonl").looks()
    assert [look["subject"] for look in looks] == list("aabccce")
    assert all(set(look) == {"at", "purpose", "subject", "data", "cases"} for look in looks)


def test_a_line_cut_by_a_crash_costs_no_other_look(tmp_path: Path) -> None:
    path = tmp_path / "looks.jsonl"
    ledger = Ledger(path)
    ledger.record("promotion", "a", ("1",), "d")
    whole = path.read_text()
    path.write_text(whole + whole[:20])
    assert ledger.record("promotion", "b", ("1",), "d") == 2
    assert [look["subject"] for look in ledger.looks()] == ["a", "b"]
    assert path.read_text().startswith(whole)


def test_writers_at_once_lose_no_look(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from gtvray.data import Ledger\n"
        "for n in range(40): Ledger(Path(sys.argv[1])).record('p', sys.argv[2] + str(n), ('x' * 300,), 'd')\n"
    )
    path = tmp_path / "looks.jsonl"
    writers = [subprocess.Popen([sys.executable, "-c", program, str(path), name]) for name in "ab"]
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0]
    subjects = [json.loads(line)["subject"] for line in path.read_text().splitlines()]
    assert sorted(subjects) == sorted(f"{name}{n}" for name in "ab" for n in range(40))
    assert Ledger(path).record("p", "last", ("x" * 300,), "d") == 81
