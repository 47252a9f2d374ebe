"""`gtvray data check`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gtvray.cli.common import JsonOption, Progress, emit, table


def check(
    folder: Annotated[Path, typer.Argument(help="A folder of cases.")],
    against: Annotated[
        Path | None, typer.Option(help="Another folder, such as the test set; no scan may be in both.")
    ] = None,
    split: Annotated[
        Path | None, typer.Option(help="A stored split of these cases; no scan may be on two of its sides.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit code 2 for warnings too.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Hold every case against what training and inference rely on; exit code 2 if one has an error.

    Example: gtvray data check Naso_GTV --against other_cases
    """
    from collections import Counter

    from gtvray.datasets import Split, check_dataset, index_dataset

    dataset = index_dataset(folder, labels_required=False)
    others = None if against is None else index_dataset(against, labels_required=False)
    sides = None if split is None else Split.load(split)[0]
    count = len(dataset.cases) + (len(others.cases) if others else 0)
    progress = Progress({"check": count * 0.4}, as_json)
    with progress.live():
        progress.begin("check", dataset.title)
        findings = check_dataset(dataset, progress.advance, against=others, split=sides)
    columns = {"severity": "severity", "case_id": "case", "code": "code", "message": "finding", "where": "where"}
    rows = [{**finding.as_dict(), "where": finding.where} for finding in findings]
    counts = Counter(finding.severity for finding in findings)
    said = ", ".join(f"{number} {severity}{'s' if number > 1 else ''}" for severity, number in counts.items())
    told = f"{dataset.title}: {said or 'nothing to report'}"
    advice = "\n".join(f"{code}: {do}" for code, do in {finding.code: finding.advice for finding in findings}.items())
    text = f"{table(rows, columns)}\n\n{advice}\n\n{told}" if rows else told
    result = {
        "cases": count,
        "structure": dataset.structure,
        "counts": dict(counts),
        "findings": [finding.as_dict() for finding in findings],
    }
    emit(result, as_json, text)
    if counts["error"] or (strict and counts["warning"]):
        raise typer.Exit(2)
