"""`gtvray data check|phantom`: datasets."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from gtvray.cli.common import JsonOption, Progress, emit, table

app = typer.Typer(help="Check a dataset, or make one of phantoms.", no_args_is_help=True)


@app.command()
def check(
    folder: Annotated[Path, typer.Argument(help="A folder in StructSeg's layout.")], as_json: JsonOption = False
) -> None:
    """Hold every case against what training and inference rely on; exit code 2 if one has an error.

    Example: gtvray data check Naso_GTV
    """
    from gtvray.data import check_dataset, index_dataset

    dataset = index_dataset(folder)
    progress = Progress({"check": len(dataset.cases) * 0.3}, as_json)
    with progress.live():
        progress.begin("check", f"{len(dataset.cases)} cases of {dataset.structure}")
        findings = check_dataset(dataset, progress.advance)
    rows = [asdict(finding) for finding in findings]
    columns = {"case_id": "case", "severity": "severity", "message": "finding", "advice": "advice"}
    flat = [{**row, "message": row["message"].replace("\n  ", "; ")} for row in rows]
    text = table(flat, columns) if rows else f"{len(dataset.cases)} cases of {dataset.structure}, nothing to report"
    emit({"cases": len(dataset.cases), "structure": dataset.structure, "findings": rows}, as_json, text)
    if any(finding.severity == "error" for finding in findings):
        raise typer.Exit(2)


@app.command()
def phantom(
    folder: Annotated[Path, typer.Argument(help="Where to write them; new or empty.")],
    count: Annotated[int, typer.Option(min=1, help="How many cases.")] = 32,
    seed: Annotated[int, typer.Option(min=0, help="Decides every voxel.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Write head-and-neck CT phantoms with a tumour, in StructSeg's layout.

    Example: gtvray data phantom phantoms --count 8
    """
    from gtvray.data import write_phantoms

    progress = Progress({"phantoms": count * 0.1}, as_json)
    with progress.live():
        progress.begin("phantoms", f"{count} cases")
        write_phantoms(folder, count, seed, progress.advance)
    emit({"folder": str(folder), "cases": count, "seed": seed}, as_json, f"{count} cases in {folder}")
