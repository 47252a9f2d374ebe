"""`gtvray predict`: segment scans on this machine, on a cluster or through an endpoint."""

from __future__ import annotations

import resource
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gtvray import NOTICE
from gtvray.cli.common import (
    WORKSPACE,
    CaFileOption,
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
    from collections.abc import Generator

    from gtvray.batch import PredictFiles
    from gtvray.cli.predict_remote import Outcome
    from gtvray.io import Workspace

_COLUMNS = {
    "scan": "scan",
    "volume_ml": "ml",
    "mode": "mode",
    "patches": "patches",
    "skipped": "skipped",
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
    exhaustive: Annotated[
        bool, typer.Option("--exhaustive", help="Run every patch, regardless of the inference mode of the model.")
    ] = False,
    uncertainty: Annotated[
        bool, typer.Option("--uncertainty", help="Estimate uncertainty; write the entropy beside each mask.")
    ] = False,
    report: Annotated[
        bool,
        typer.Option(
            "--report", help="Write report.json and report.html beside the masks: times, mode, skipped patches."
        ),
    ] = False,
    server: Annotated[str | None, typer.Option(help="URL of an endpoint, such as http://127.0.0.1:8000.")] = None,
    token: Annotated[str, typer.Option(envvar="GTVRAY_TOKEN", help="Its bearer token.")] = "",
    ca_file: CaFileOption = None,
    model_name: Annotated[
        str | None, typer.Option(help="Name of one of the endpoint's models; by default its default model.")
    ] = None,
    jobs: Annotated[
        bool, typer.Option("--jobs", help="Send the scans to the endpoint as a job, which survives its restart.")
    ] = False,
    at_once: Annotated[int, typer.Option(min=1, max=64, help="Scans that are sent to the endpoint at once.")] = 4,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of the network, in each process.")] = 1,
    address: Annotated[
        str | None,
        typer.Option(help="Running Ray cluster, host:port or auto, to spread the scans over; by default none."),
    ] = None,
    gpus: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="On a cluster: GPUs of each process; default: 1 if there are any."),
    ] = None,
    memory_gb: Annotated[
        float | None, typer.Option(min=0.1, help="On a cluster: memory of each process; by default estimated.")
    ] = None,
    overwrite: OverwriteOption = False,
    workspace: WorkspaceOption = WORKSPACE,
    config: ConfigOption = None,
    override: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Segment the tumour in scans.

    Each mask is on the grid of its scan. A scan that fails does not stop the others.

    In a folder, every result is recorded in predictions.jsonl, so the same command continues after an interruption.
    Only gtvray's own earlier outputs are ever replaced, and only with --overwrite.

    Example: gtvray predict scan.nii.gz -o mask.nii.gz
    """
    from gtvray.api import predict_folder
    from gtvray.cli.predict_remote import predict_remotely
    from gtvray.config import load_config
    from gtvray.io import Workspace

    local: dict[str, object] = {"--exhaustive": exhaustive, "--uncertainty": uncertainty, "--address": address}
    _check_options(server, jobs, {"--model-name": model_name, "--ca-file": ca_file}, local)
    folders, kept = Workspace(workspace), 0
    read = [file for file in (config, ca_file) if file is not None]
    if server:
        files = _plan_remote(inputs, out, model, folders, read, report=report, overwrite=overwrite)
        outcomes = predict_remotely(
            files.masks,
            server,
            token,
            ca_file=ca_file,
            model=model_name,
            at_once=at_once,
            as_job=jobs,
            overwrite=overwrite,
        )
        rows = _remote_rows(files, outcomes, as_json)
    else:
        progress = Progress({}, as_json)
        with progress.live():
            outcome = predict_folder(
                inputs,
                out,
                model=model,
                address=address,
                exhaustive=exhaustive,
                uncertainty=uncertainty,
                overwrite=overwrite,
                report=report,
                threads=threads,
                gpus=gpus,
                memory_gb=memory_gb,
                workspace=folders,
                config=load_config(config, override or []),
                read=read,
                show=progress,
            )
        if len(outcome.rows) == 1 and outcome.errors:
            raise outcome.errors[0]
        files, rows, kept = outcome.files, outcome.rows, outcome.kept
    if report:
        _write_report(files, rows, overwrite)
    failed = [row for row in rows if "error" in row]
    masks = [row for row in rows if "error" not in row]
    found = {"masks": masks, "failed": failed, "kept": kept, "skipped": files.skipped, "notice": NOTICE}
    earlier = [f"{kept} of {len(rows)} masks are of an earlier run"] if kept else []
    emit(found, as_json, "\n".join([_text(rows), *earlier, *_skipped(files), NOTICE]))
    if failed:
        raise typer.Exit(1)


def _check_options(server: str | None, jobs: bool, remote: dict[str, object], local: dict[str, object]) -> None:
    """Reject options that contradict each other; `remote` need an endpoint, and `local` do not apply to one."""
    from gtvray.errors import InputError

    if not server and jobs:
        raise InputError("--jobs requires an endpoint", found="--jobs without --server", do="add --server")
    for option, given in remote.items() if not server else ():
        if given is not None:
            named = "use --model, or name the registered model with tracking.model_name=NAME"
            do = named if option == "--model-name" else "add --server"
            raise InputError(f"{option} requires an endpoint", found=f"{option} without --server", do=do)
    for option, given in local.items() if server else ():
        if given:
            raise InputError(
                "this option does not apply to an endpoint", found=f"--server and {option}", do="omit one of the two"
            )


def _plan_remote(
    inputs: list[Path], out: Path, model: str, workspace: Workspace, read: list[Path], *, report: bool, overwrite: bool
) -> PredictFiles:
    from gtvray.batch import model_folders, plan_files

    closed = model_folders(workspace, model)
    return plan_files(inputs, out, report=report, uncertainty=False, overwrite=overwrite, read=read, closed=closed)


def _remote_rows(files: PredictFiles, outcomes: Generator[Outcome, None, None], as_json: bool) -> list[dict[str, Any]]:
    """Return a row for each scan that an endpoint predicts, in order.

    Raises:
        GtvrayError: of the scan, if there is only one.
    """
    from gtvray.errors import GtvrayError

    names, rows = files.names, list[dict[str, Any]]()
    progress = Progress({"predict": 2.0 * len(names)}, as_json)
    # Closed here and not when it is collected, so that nothing is sent after the last outcome.
    with progress.live(), closing(outcomes):
        progress.begin("predict", f"{len(names)} scans")
        for path, outcome in outcomes:
            if not isinstance(outcome, GtvrayError):
                rows.append({"scan": names[path], **outcome.as_dict()})
            elif len(names) == 1:
                raise outcome
            else:
                rows.append({"scan": names[path], "error": outcome.problem()})
            progress.advance(len(rows), len(names))
    return rows


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
    parts += [
        f"{row['scan']}: uncertainty {row['uncertainty']['expected_dice_loss']:.2f}"
        for row in done
        if "uncertainty" in row
    ]
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
