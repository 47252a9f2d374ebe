"""`gtvray predict`: scans to masks, here or through an endpoint, with the same result."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gtvray import NOTICE
from gtvray.cli.common import (
    WORKSPACE,
    ConfigOption,
    JsonOption,
    ModelOption,
    OverwriteOption,
    Progress,
    SetOption,
    WorkspaceOption,
    emit,
    table,
)

if TYPE_CHECKING:
    from gtvray.api import Model
    from gtvray.cli.predict_files import PredictFiles
    from gtvray.errors import GtvrayError
    from gtvray.inference import SegmentedCase

    Outcomes = Iterator[tuple[Path, SegmentedCase | GtvrayError]]

_COLUMNS = {
    "scan": "scan",
    "volume_ml": "ml",
    "mode": "mode",
    "patches": "patches",
    "skipped": "not looked at",
    "seconds": "s",
    "mask": "mask",
}


def predict(
    inputs: Annotated[list[Path], typer.Argument(help="Scans (.nii, .nii.gz, .nrrd), or folders of cases or scans.")],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="For one scan a file (.nii, .nii.gz, .nrrd), or a folder for any number."),
    ],
    model: ModelOption = "champion",
    exhaustive: Annotated[bool, typer.Option("--exhaustive", help="Run every patch, whatever the model does.")] = False,
    uncertainty: Annotated[
        bool, typer.Option("--uncertainty", help="Estimate uncertainty; write the entropy beside each mask.")
    ] = False,
    report: Annotated[
        bool,
        typer.Option(
            "--report", help="Write report.json and report.html beside the masks: times, mode, what was skipped."
        ),
    ] = False,
    server: Annotated[str | None, typer.Option(help="An endpoint to ask, such as http://127.0.0.1:8000.")] = None,
    token: Annotated[str, typer.Option(envvar="GTVRAY_TOKEN", help="Its bearer token.")] = "",
    jobs: Annotated[
        bool, typer.Option("--jobs", help="Send the scans to the endpoint as a job, which survives its restart.")
    ] = False,
    at_once: Annotated[int, typer.Option(min=1, max=64, help="Scans that are sent to the endpoint at once.")] = 4,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of the network.")] = 1,
    overwrite: OverwriteOption = False,
    workspace: WorkspaceOption = WORKSPACE,
    config: ConfigOption = None,
    override: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Segment the tumour in scans; each mask lies on its scan's own grid. A scan that fails does not stop the others.

    Nothing is replaced but gtvray's own earlier outputs, and those only with --overwrite.

    Example: gtvray predict scan.nii.gz -o mask.nii.gz
    """
    from gtvray.api import load_model
    from gtvray.cli.predict_files import plan_files
    from gtvray.cli.predict_remote import predict_remotely
    from gtvray.config import load_config
    from gtvray.errors import InputError
    from gtvray.io import Workspace

    folders = Workspace(workspace)
    if server and exhaustive:
        raise InputError(
            "an endpoint uses the inference mode of its model", found="--server and --exhaustive", do="drop one"
        )
    if server and uncertainty:
        raise InputError("an endpoint does not report uncertainty", found="--server and --uncertainty", do="drop one")
    if jobs and not server:
        raise InputError("only an endpoint takes jobs", found="--jobs without --server", do="add --server")
    files = plan_files(
        inputs,
        out,
        report=report,
        uncertainty=uncertainty,
        overwrite=overwrite,
        read=[config] if config is not None else [],
        closed=[folders.bundles, *([Path(model)] if Path(model).is_dir() else [])],
    )
    if server:
        outcomes = predict_remotely(files.masks, server, token, at_once=at_once, as_job=jobs, overwrite=overwrite)
    else:
        loaded = load_model(model, workspace=folders, config=load_config(config, override or []), threads=threads)
        outcomes = _local(files.masks, loaded.exhaustive() if exhaustive else loaded, uncertainty, overwrite)
    rows = _rows(outcomes, files.names, as_json)
    if report:
        _write_report(files, rows, overwrite)
    failed = [row for row in rows if "error" in row]
    masks = [row for row in rows if "error" not in row]
    found = {"masks": masks, "failed": failed, "skipped": files.skipped, "notice": NOTICE}
    emit(found, as_json, "\n".join([_text(rows), *_skipped(files), NOTICE]))
    if failed:
        raise typer.Exit(1)


def _local(targets: dict[Path, Path], model: Model, uncertainty: bool, overwrite: bool) -> Outcomes:
    from gtvray.inference import LocalCases, overlapped

    cases = LocalCases(model.predictor, targets.__getitem__, uncertainty=uncertainty, overwrite=overwrite)
    return overlapped(targets, cases.load, cases.run, cases.store)


def _rows(outcomes: Outcomes, names: dict[Path, str], as_json: bool) -> list[dict[str, Any]]:
    """A row a scan, in order.

    Raises:
        GtvrayError: of the scan, if there is only one.
    """
    from gtvray.errors import GtvrayError

    progress = Progress({"predict": 2.0 * len(names)}, as_json)
    rows: list[dict[str, Any]] = []
    with progress.live():
        progress.begin("predict", f"{len(names)} scans")
        for path, outcome in outcomes:
            if not isinstance(outcome, GtvrayError):
                rows.append({"scan": names[path], **_row(outcome)})
            elif len(names) == 1:
                raise outcome
            else:
                rows.append({"scan": names[path], "error": outcome.problem()})
            progress.advance(len(rows), len(names))
    return rows


def _row(case: SegmentedCase) -> dict[str, Any]:
    return {
        "mask": str(case.mask),
        "volume_ml": round(case.volume_ml, 3),
        **asdict(case.coverage),
        "notes": list(case.notes),
        "out_of_domain": list(case.out_of_domain),
        **({"uncertainty": case.uncertainty.as_dict()} if case.uncertainty else {}),
        "milliseconds": round(1000 * sum(case.seconds.values())),
        "seconds": {stage: round(seconds, 4) for stage, seconds in case.seconds.items()},
    }


def _text(rows: list[dict[str, Any]]) -> str:
    done = [
        {
            **row,
            "seconds": row["milliseconds"] / 1000,
            "skipped": f"{100 * row['volume_skipped_share']:.0f} %",
            "mode": f"{row['mode']} ({row['fallback']})" if row["fallback"] else row["mode"],
        }
        for row in rows
        if "error" not in row
    ]
    failed = [
        {"scan": row["scan"], "why": row["error"]["title"], "found": row["error"].get("found")}
        for row in rows
        if "error" in row
    ]
    parts = [table(done, _COLUMNS)] if done else []
    parts += [f"{row['scan']}: {note}" for row in done for note in row["notes"]]
    parts += [f"{row['scan']}: doubt {row['uncertainty']['doubt']:.2f}" for row in done if "uncertainty" in row]
    parts += [f"OUT OF DOMAIN {row['scan']}: {reason}" for row in done for reason in row["out_of_domain"]]
    if failed:
        parts += [
            f"{len(failed)} of {len(rows)} failed:",
            table(failed, {"scan": "scan", "why": "why", "found": "found"}),
        ]
    return "\n".join(parts)


def _skipped(files: PredictFiles) -> list[str]:
    return [f"skipped {name}: {reason}" for name, reason in files.skipped.items()]


def _write_report(files: PredictFiles, rows: list[dict[str, Any]], overwrite: bool) -> None:
    from gtvray.io import Table, render_page, write_output_json, write_output_text

    as_json, as_page = files.reports
    peak_mb = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    found = {"cases": rows, "skipped": files.skipped, "peak_mb": peak_mb, "notice": NOTICE}
    write_output_json(as_json, found, overwrite=overwrite)
    stages = list(dict.fromkeys(stage for row in rows for stage in row.get("seconds", {})))
    shown = ("scan", "volume_ml", "mode", "fallback", "patches", "patches_skipped", "volume_skipped_share")
    cells = [
        [*(row.get(key) for key in shown), *(row.get("seconds", {}).get(stage) for stage in stages), _remark(row)]
        for row in rows
    ]
    heads = [*(key.replace("_", " ") for key in shown), *(f"{stage} (s)" for stage in stages), "remark"]
    remarks = [f"Peak memory {peak_mb} MB.", *(f"Skipped {name}: {reason}" for name, reason in files.skipped.items())]
    page = render_page(
        "gtvray.io", "table.html", title="Masks", notice=NOTICE, table=Table(heads, cells), remarks=remarks
    )
    write_output_text(as_page, page, overwrite=overwrite)


def _remark(row: dict[str, Any]) -> str:
    if "error" in row:
        return str(row["error"]["title"])
    return "; ".join([*(f"OUT OF DOMAIN: {reason}" for reason in row["out_of_domain"]), *row["notes"]])
