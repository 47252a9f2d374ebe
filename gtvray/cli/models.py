"""`gtvray models`: registered versions."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Literal

import typer

from gtvray.cli.common import WORKSPACE, ConfigOption, JsonOption, SetOption, WorkspaceOption, emit, table
from gtvray.cli.promote import ByOption
from gtvray.cli.settings import ListGroup, SettingsCommand

app = typer.Typer(
    cls=ListGroup,
    help="List, show, compare, export or import registered versions.",
)
ReasonOption = Annotated[str, typer.Option("--reason", help="Reason for serving it without evidence; recorded.")]
VersionArgument = Annotated[str, typer.Argument(help="A version, champion, or the MLflow run of its training.")]


@app.command("list", cls=SettingsCommand)
def list_(
    workspace: WorkspaceOption = WORKSPACE,
    config: ConfigOption = None,
    override: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the registered versions with their last decisions.

    Example: gtvray models list
    """
    from gtvray.api import open_decisions, open_registry
    from gtvray.config import load_config
    from gtvray.io import Workspace

    folders, settings = Workspace(workspace), load_config(config, override or [])
    versions = open_registry(folders, settings, writing=False).versions()
    last = {decision.digest: decision for decision in open_decisions(folders, settings, writing=False).decisions()}
    rows = []
    for version in versions:
        decision = last.get(version.digest)
        rows.append(
            {
                **asdict(version),
                "decision": decision.kind if decision is not None else None,
                "by": decision.by if decision is not None else None,
                "at": decision.at if decision is not None else None,
            }
        )
    columns = {
        "version": "version",
        "aliases": "aliases",
        "decision": "last decision",
        "by": "by",
        "at": "at",
        "licence": "licence of the data",
        "digest": "digest",
        "run_id": "MLflow run",
    }
    shown = [{**row, "aliases": ", ".join(row["aliases"])} for row in rows]
    emit(rows, as_json, table(shown, columns) if rows else "no model is registered")


@app.command("show", cls=SettingsCommand)
def show(
    model: VersionArgument = "champion",
    workspace: WorkspaceOption = WORKSPACE,
    config: ConfigOption = None,
    override: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show a version: its settings, data and decisions.

    Example: gtvray models show 3
    """
    from gtvray.api import show_version
    from gtvray.config import load_config

    details = show_version(model, workspace=workspace, config=load_config(config, override or []))
    version, bundle = details.version, details.bundle
    data = bundle.info.get("training_data", {})
    facts = {
        "version": version.version,
        "aliases": ", ".join(version.aliases),
        "digest": version.digest,
        "MLflow run": version.run_id,
        "training data": f"{data.get('cases')} cases, fingerprint {str(data.get('digest'))[:16]}",
        "licence of the data": data.get("licence", "not stated"),
        "network": f"{bundle.network.kind}, {bundle.members} averaged",
        "inference": f"{bundle.inference.backend}, {bundle.inference.precision}, {bundle.inference.mode}",
    }
    text = "\n".join(f"{name}: {value}" for name, value in facts.items())
    rows = [asdict(decision) for decision in details.decisions]
    columns = {"number": "decision", "kind": "kind", "by": "by", "at": "at", "reason": "reason", "state": "state"}
    emit(details.as_dict(), as_json, f"{text}\n\n{table(rows, columns)}" if rows else text)


@app.command("diff", cls=SettingsCommand)
def diff(
    one: VersionArgument,
    other: VersionArgument = "champion",
    workspace: WorkspaceOption = WORKSPACE,
    config: ConfigOption = None,
    override: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show settings, data and metrics that differ in two versions.

    Example: gtvray models diff 3 champion
    """
    from gtvray.api import diff_versions
    from gtvray.config import load_config

    found = diff_versions(one, other, workspace=workspace, config=load_config(config, override or []))
    rows = [{"key": key, "one": left, "other": right} for key, (left, right) in found.items()]
    emit(found, as_json, table(rows, {"key": "key", "one": one, "other": other}) if rows else "no difference")


@app.command("export", cls=SettingsCommand)
def export(
    model: VersionArgument,
    folder: Annotated[
        str, typer.Argument(help="New folder for bundle, golden cases and decision records, or its URI.")
    ],
    form: Annotated[
        Literal["gtvray", "monai"],
        typer.Option("--format", help="gtvray: another site can serve or import it; monai: MONAI's bundle format."),
    ] = "gtvray",
    workspace: WorkspaceOption = WORKSPACE,
    config: ConfigOption = None,
    override: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a version to a folder that another site can use.

    A URI such as s3://bucket/site-b names a folder in an object store; gtvray's own format only.

    Example: gtvray models export champion site-b
    """
    from gtvray.api import export_monai, export_version
    from gtvray.config import load_config

    write = export_monai if form == "monai" else export_version
    target = write(model, folder, workspace=workspace, config=load_config(config, override or []))
    emit({"folder": str(target)}, as_json, f"exported to {target}")


@app.command("import", cls=SettingsCommand)
def import_(
    folder: Annotated[str, typer.Argument(help="Folder written by `gtvray models export`; a path or a URI.")],
    workspace: WorkspaceOption = WORKSPACE,
    config: ConfigOption = None,
    override: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Register a version that another site exported.

    `gtvray promote VERSION` can make it the champion.

    Example: gtvray models import site-a
    """
    from gtvray.api import import_version
    from gtvray.config import load_config

    version = import_version(folder, workspace=workspace, config=load_config(config, override or []))
    emit(asdict(version), as_json, f"registered as version {version.version}")


@app.command("adopt", cls=SettingsCommand)
def adopt(
    version: Annotated[str, typer.Argument(help="The version that champion points to, for confirmation.")],
    reason: ReasonOption,
    by: ByOption = None,
    workspace: WorkspaceOption = WORKSPACE,
    config: ConfigOption = None,
    override: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Accept a champion that was set in MLflow without the gate.

    Example: gtvray models adopt 3 --reason "validated at site A" --by "A. Lovelace"
    """
    from gtvray.api import adopt_champion
    from gtvray.config import load_config

    settings = load_config(config, override or [])
    adopted = adopt_champion(version, reason, by=by, workspace=workspace, config=settings)
    emit(asdict(adopted), as_json, f"version {adopted.version} is adopted as champion")


@app.command("repair", cls=SettingsCommand)
def repair(
    by: ByOption = None,
    workspace: WorkspaceOption = WORKSPACE,
    config: ConfigOption = None,
    override: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Complete a change of the champion that was interrupted.

    The champion of the last decision is restored.

    Example: gtvray models repair
    """
    from gtvray.api import rollback
    from gtvray.config import load_config

    version = rollback(restore=True, by=by, workspace=workspace, config=load_config(config, override or []))
    emit(asdict(version), as_json, f"version {version.version} is champion")
