"""Tables of the accuracy benchmark: storage, the ledger of looks at `val`, and the results derived from them."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from gtvray.errors import InputError
from gtvray.evaluation import paired_difference
from gtvray.io import atomic_path, read_json

Table = dict[str, Any]

OURS, QUARTER, NNUNET, MEAN = "ours", "ours-quarter", "nnunet", "mean"
PEERS = (NNUNET, MEAN)
# Goals of the benchmark; `dsc` and `lead` are minimum values, `hd95_mm` and `minutes` maximum values.
GOALS = {"dsc": 0.60, "hd95_mm": 30.0, "lead": 0.10, "minutes": 58.0}
QUARTER_SHARE = 0.25
SEED, FEWEST = 0, 3
LEDGER_HEAD = """# Looks at held-out cases

| date | what was scored | why | mean DSC | mean HD95 | look |
| --- | --- | --- | --- | --- | --- |
"""


def table_file(results: Path, contestant: str, seed: int | None = None) -> Path:
    """Path of the table of a contestant."""
    return results / f"accuracy_{contestant}{'' if seed is None else f'_{seed}'}.json"


def stored_table(file: Path, **asked: Any) -> Table | None:
    """Return a stored table if its data and settings are the requested ones."""
    if not file.exists():
        return None
    table: Table = read_json(file)
    return table if all(table.get(key) == value for key, value in asked.items()) else None


def summary_of(cases: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Means and medians over cases."""
    dsc, hd95_mm = ([case[key] for case in cases] for key in ("dsc", "hd95_mm"))
    return {
        "dsc": statistics.fmean(dsc),
        "dsc_median": statistics.median(dsc),
        "hd95_mm": statistics.fmean(hd95_mm),
        "hd95_mm_median": statistics.median(hd95_mm),
        "missed": sum(case["missed"] for case in cases),
    }


def versions() -> dict[str, str]:
    """Versions of the libraries."""
    return {name: metadata.version(name) for name in ("gtvray", "torch", "monai", "numpy")}


def machine(threads: int) -> dict[str, Any]:
    """Description of the machine."""
    return {"cpus": os.cpu_count(), "threads": threads, "python": platform.python_version()}


def record_look(ledger: Path, what: str, why: str, digest: str, summary: Mapping[str, float]) -> None:
    """Add a row to the ledger for a scored model or set of masks, once per digest.

    Args:
        ledger: page with a table of looks, numbered in the last column; created if missing.
        what: what was scored, without the digest.
        why: purpose.
        digest: digest of the bundle, or of the masks if there is none.
        summary: summary of the scores.
    """
    text = ledger.read_text() if ledger.exists() else LEDGER_HEAD
    name = f"`{digest[:12]}`"
    if name in text:
        return
    numbers = [line.rstrip("| ").rpartition("|")[2].strip() for line in text.splitlines() if line.startswith("|")]
    look = 1 + max((int(number) for number in numbers if number.isdigit()), default=0)
    scores = f"{summary['dsc']:.3f} | {summary['hd95_mm']:.1f} mm"
    row = f"| {datetime.now(UTC).date()} | {what} {name} | {why} | {scores} | {look} |\n"
    with atomic_path(ledger) as temporary:
        temporary.write_text(f"{text.rstrip()}\n{row}")


def stored_figure(results: Path) -> dict[str, Any]:
    """Compute the results from the stored tables without running anything.

    Raises:
        InputError: the tables have different cases or settings.
    """
    ours, quarter = (
        [read_json(file) for file in sorted(results.glob(f"accuracy_{name}_*.json"))] for name in (OURS, QUARTER)
    )
    peers = {name: stored_table(table_file(results, name)) for name in PEERS}
    for table in peers.values():
        if table is not None:
            table["from"] = "file"
    return figure(ours, quarter, peers)


def figure(ours: Sequence[Table], quarter: Sequence[Table], peers: Mapping[str, Table | None]) -> dict[str, Any]:
    """Compute the results from tables; missing ones are null.

    Args:
        ours: a table per seed.
        quarter: the same for trainings with a quarter of the budget.
        peers: name -> table, or None.

    Raises:
        InputError: the tables have different cases or settings.
    """
    there = {name: table for name, table in peers.items() if table is not None}
    for key in ("train", "val"):
        require_alike([*ours, *quarter, *there.values()], key)
    for tables in (ours, quarter):
        require_alike(tables, "settings")
    better = max(there, key=lambda name: there[name]["summary"]["dsc"], default=None)
    full, short = (standing(tables, there) for tables in (ours, quarter))
    lead = full["over"].get(better)
    return {
        "benchmark": "accuracy",
        "dsc": full["dsc"],
        "peer_dsc": there[better]["summary"]["dsc"] if better else None,
        "peer": better,
        "peer_from": there[better]["from"] if better else None,
        "diff_low": lead["low"] if lead else None,
        "diff_high": lead["high"] if lead else None,
        "hd95_mm": full["hd95_mm"],
        "peer_hd95_mm": there[better]["summary"]["hd95_mm"] if better else None,
        "minutes": full["minutes"],
        "goals_met": goals_met(full, short, better),
        "cpu_to_nnunet": cpu_share(full, there.get(NNUNET)),
        "ours": full,
        "quarter": short,
        "peers": {name: without_cases(table) if table else None for name, table in peers.items()},
    }


def require_alike(tables: Sequence[Table], key: str) -> None:
    """Reject tables that differ in a value that must be equal.

    Raises:
        InputError: the tables differ.
    """
    found = {str(table[key]) for table in tables}
    if len(found) > 1:
        names = [f"{table['contestant']} {table['seed']}" for table in tables]
        raise InputError(f"the tables differ in {key}", found=", ".join(names), do="run the older ones again")


def standing(tables: Sequence[Table], peers: Mapping[str, Table]) -> dict[str, Any]:
    """Results of gtvray with one budget: means over seeds per case, and paired differences to each peer."""
    if not tables:
        return {"budget": None, "dsc": None, "hd95_mm": None, "minutes": None, "over": {}, "seeds": []}
    dsc, hd95_mm = (mean_over_seeds(tables, key) for key in ("dsc", "hd95_mm"))
    return {
        "budget": tables[0]["budget"],
        "dsc": statistics.fmean(dsc.values()),
        "hd95_mm": statistics.fmean(hd95_mm.values()),
        # The slowest, because the budget applies to each training.
        "minutes": max(table["train_s"] for table in tables) / 60,
        "cpu_minutes": max(table["train_cpu_s"] for table in tables) / 60,
        "prepare_s": max(table["prepare_s"] for table in tables),
        "over": {name: over(dsc, mean_over_seeds([peer], "dsc")) for name, peer in peers.items()},
        "seeds": [without_cases(table) for table in tables],
    }


def mean_over_seeds(tables: Sequence[Table], key: str) -> dict[str, float]:
    """Map each case to the mean over seeds."""
    columns = [{case["case"]: case[key] for case in table["cases"]} for table in tables]
    return {name: statistics.fmean(column[name] for column in columns) for name in columns[0]}


def over(ours: Mapping[str, float], theirs: Mapping[str, float]) -> dict[str, float] | None:
    """Mean paired difference with its 95 % interval; None for too few cases."""
    if len(theirs) < FEWEST:
        return None
    return asdict(paired_difference([ours[name] for name in theirs], list(theirs.values()), seed=SEED))


def goals_met(full: Mapping[str, Any], short: Mapping[str, Any], better: str | None) -> dict[str, bool | None]:
    """Whether each goal is met; null if it cannot be determined, for example because a peer is missing."""
    whole = full["dsc"] is not None
    every = [short["over"].get(name) for name in PEERS]
    lead = full["over"].get(better) if all(name in full["over"] for name in PEERS) else None
    quarter = QUARTER_SHARE * GOALS["minutes"]
    return {
        "dsc": full["dsc"] >= GOALS["dsc"] if whole else None,
        "hd95_mm": full["hd95_mm"] <= GOALS["hd95_mm"] if whole else None,
        "lead": lead["low"] >= GOALS["lead"] if lead else None,
        "minutes": full["minutes"] <= GOALS["minutes"] if whole else None,
        # Better means that the interval is above zero, and a quarter is measured in elapsed time.
        "quarter": short["minutes"] <= quarter and all(each["low"] > 0 for each in every if each)
        if all(every)
        else None,
    }


def cpu_share(full: Mapping[str, Any], nnunet: Table | None) -> float | None:
    """CPU seconds of the longest training of gtvray divided by those of nnU-Net; below 1 means fewer."""
    return None if nnunet is None or not full["seeds"] else 60 * full["cpu_minutes"] / nnunet["train_cpu_s"]


def without_cases(table: Table) -> Table:
    """A table without its rows, which are in its file."""
    return {key: value for key, value in table.items() if key != "cases"}
