"""`gtvray corrections`: masks corrected in a review."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from gtvray.cli.common import WORKSPACE, JsonOption, WorkspaceOption, emit, table
from gtvray.cli.settings import ListGroup, SettingsCommand

app = typer.Typer(cls=ListGroup, help="Corrected masks: add, list, and which cases to review next.")
_COLUMNS = {
    "name": "name",
    "case_id": "case",
    "reviewer": "reviewer",
    "source": "source",
    "derived_from": "derived from",
    "at": "at",
    "note": "note",
}


@app.command("add", cls=SettingsCommand)
def add(
    scan: Annotated[Path, typer.Argument(help="The scan (.nii, .nii.gz, .nrrd).")],
    mask: Annotated[Path, typer.Argument(help="Its corrected mask, on the scan's grid.")],
    reviewer: Annotated[str, typer.Option("--reviewer", help="Who corrected it.")],
    source: Annotated[
        str, typer.Option("--source", help="Where the mask comes from, such as 3D Slicer.")
    ] = "not stated",
    derived_from: Annotated[
        str | None, typer.Option("--derived-from", help="Digest of the model whose mask was corrected.")
    ] = None,
    case: Annotated[str | None, typer.Option("--case", help="Name of the case; the file's name otherwise.")] = None,
    same_patient_as: Annotated[
        str | None, typer.Option("--same-patient-as", help="A case of the dataset that is of the same patient.")
    ] = None,
    note: Annotated[str, typer.Option("--note", help="Remark of the reviewer.")] = "",
    workspace: WorkspaceOption = WORKSPACE,
    as_json: JsonOption = False,
) -> None:
    """Store a corrected mask with its scan, reviewer and origin.

    Trainings with split.corrections=true use it.

    Example: gtvray corrections add scan.nii.gz mask.nrrd --reviewer "A. Physicist" --source "3D Slicer"
    """
    from gtvray.datasets import CorrectionStore, Review
    from gtvray.io import Workspace

    folders = Workspace(workspace)
    review = Review(reviewer, source, derived_from, same_patient_as, note)
    with folders.lock():
        stored = CorrectionStore(folders.corrections).add(scan, mask, review, case)
    text = f"{stored.name}: case {stored.case_id}, reviewed by {stored.reviewer}"
    emit(asdict(stored), as_json, f"{text}\nto train on it: gtvray train --data DATA split.corrections=true")


@app.command("list", cls=SettingsCommand)
def list_(workspace: WorkspaceOption = WORKSPACE, as_json: JsonOption = False) -> None:
    """List the stored corrections, oldest first.

    Example: gtvray corrections list
    """
    from gtvray.datasets import CorrectionStore
    from gtvray.io import Workspace

    rows = [asdict(each) for each in CorrectionStore(Workspace(workspace).corrections).all()]
    shown = [{**row, "derived_from": (row["derived_from"] or "-")[:12]} for row in rows]
    emit({"corrections": rows}, as_json, table(shown, _COLUMNS) if rows else "no corrections")


@app.command("propose", cls=SettingsCommand)
def propose(
    report: Annotated[Path, typer.Argument(help="report.json of `gtvray predict --report`, best with --uncertainty.")],
    count: Annotated[int, typer.Option("--count", min=1, help="Number of cases to propose.")] = 10,
    as_json: JsonOption = False,
) -> None:
    """Propose which predicted cases to review next.

    Failures and flagged cases come first, then the most uncertain ones.

    Example: gtvray corrections propose masks/report.json
    """
    from gtvray.reports import VALUE_OF_ORDER, review_order

    rows = [asdict(each) for each in review_order(report)[:count]]
    columns = {"scan": "scan", "reason": "reason", "uncertainty": "uncertainty"}
    shown = [{**row, "uncertainty": "-" if row["uncertainty"] is None else f"{row['uncertainty']:.2f}"} for row in rows]
    text = table(shown, columns) if rows else "no cases"
    emit({"cases": rows, "value": VALUE_OF_ORDER}, as_json, f"{text}\n\n{VALUE_OF_ORDER}")
