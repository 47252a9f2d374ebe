"""`gtvray data describe`, `check` and `ledger`: commands that only read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gtvray.cli.common import (
    WORKSPACE,
    JsonOption,
    OverwriteOption,
    Progress,
    WorkspaceOption,
    emit,
    table,
)

# Time to read and check a full-size case.
_CASE_S = 0.4


def describe(
    folder: Annotated[Path, typer.Argument(help="A folder of cases.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for describe.md, describe.json and describe.html.")
    ] = None,
    card: Annotated[
        Path | None, typer.Option(help="A published dataset card in Markdown, to compare the statistics with.")
    ] = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Compute the tables of a dataset card from the files.

    With --out they are written to a folder, with a page of histograms and pictures.

    Example: gtvray data describe Naso_GTV --out naso_gtv_described
    """
    from gtvray.datasets import describe_dataset, html_page, index_dataset, markdown, parse_card
    from gtvray.errors import NotFoundError
    from gtvray.io import check_outputs, read_text, write_output_json, write_output_text

    if card is not None and not card.is_file():
        raise NotFoundError("no such file", where=card, expected="a dataset card in Markdown")
    published = None if card is None else parse_card(read_text(card))
    dataset = index_dataset(folder, labels_required=False)
    if out is not None:
        names = ("describe.md", "describe.html", "describe.json")
        read = [path for case in dataset.cases for path in (case.image, case.label) if path is not None]
        inputs = [*read, *([card] if card is not None else [])]
        check_outputs([out / name for name in names], inputs=inputs, overwrite=overwrite)
    progress = Progress({"describe": len(dataset.cases) * _CASE_S}, as_json)
    with progress.live():
        progress.begin("describe", dataset.title)
        description = describe_dataset(dataset, progress.advance, card=published, pictures=out is not None)
    text = markdown(description)
    if out is not None:
        write_output_text(out / "describe.md", text, overwrite=overwrite)
        write_output_text(out / "describe.html", html_page(description), overwrite=overwrite)
        write_output_json(out / "describe.json", description.as_dict(), overwrite=overwrite)
    emit(description.as_dict(), as_json, text if out is None else f"{text}\npage: {out / 'describe.html'}")


def check(
    folder: Annotated[Path, typer.Argument(help="A folder of cases.")],
    against: Annotated[
        Path | None, typer.Option(help="Another folder, such as the test set; no scan may be in both.")
    ] = None,
    split: Annotated[
        Path | None, typer.Option(help="A stored split of these cases; no scan may be in two of its parts.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with code 2 for warnings too.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Check that every case can be used for training and inference.

    The exit code is 2 if there is an error.

    Example: gtvray data check Naso_GTV --against other_cases
    """
    from collections import Counter

    from gtvray.datasets import Split, check_dataset, index_dataset

    dataset = index_dataset(folder, labels_required=False)
    others = None if against is None else index_dataset(against, labels_required=False)
    parts = None if split is None else Split.load(split)[0]
    count = len(dataset.cases) + (len(others.cases) if others else 0)
    progress = Progress({"check": count * _CASE_S}, as_json)
    with progress.live():
        progress.begin("check", dataset.title)
        findings = check_dataset(dataset, progress.advance, against=others, split=parts)
    columns = {"severity": "severity", "case_id": "case", "code": "code", "message": "finding", "where": "where"}
    rows = [{**finding.as_dict(), "where": finding.where} for finding in findings]
    counts = Counter(finding.severity for finding in findings)
    totals = ", ".join(f"{number} {severity}{'s' if number > 1 else ''}" for severity, number in counts.items())
    summary = f"{dataset.title}: {totals or 'no findings'}"
    advice = "\n".join(f"{code}: {do}" for code, do in {finding.code: finding.advice for finding in findings}.items())
    result = {
        "cases": count,
        "structure": dataset.structure,
        "counts": dict(counts),
        "findings": [finding.as_dict() for finding in findings],
    }
    emit(result, as_json, f"{table(rows, columns)}\n\n{advice}\n\n{summary}" if rows else summary)
    if counts["error"] or (strict and counts["warning"]):
        raise typer.Exit(2)


def ledger(workspace: WorkspaceOption = WORKSPACE, as_json: JsonOption = False) -> None:
    """List who scored which model on which cases.

    Each entry has the number of models that had been scored on these cases by then, and the name in GTVRAY_WHO or of
    the account. The name is stored in the ledger of the workspace only.

    Example: gtvray data ledger
    """
    from gtvray.datasets import Ledger
    from gtvray.io import Workspace

    looks = Ledger(Workspace(workspace).ledger).table()
    rows = [{**look, "subject": look["subject"][:12], "cases": len(look["cases"])} for look in looks]
    columns = {
        "at": "when",
        "who": "who",
        "purpose": "purpose",
        "subject": "model",
        "cases": "cases",
        "looks": "models",
    }
    warnings = [str(look["warning"]) for look in looks if look["warning"]]
    emit(looks, as_json, "\n".join([table(rows, columns), *warnings[-1:]]) if rows else "the ledger is empty")
