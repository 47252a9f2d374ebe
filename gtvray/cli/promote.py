"""`gtvray promote | rollback`."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gtvray.cli.common import WORKSPACE, ConfigOption, JsonOption, Progress, SetOption, WorkspaceOption, emit

if TYPE_CHECKING:
    from gtvray.api import Promotion, PromotionPlan

ByOption = Annotated[
    str | None,
    typer.Option("--by", help="Name of the person who decides, for the record; by default GTVRAY_WHO or the account."),
]


class Gain(StrEnum):
    """Gains for which a candidate need not be better than the champion."""

    LATENCY = "latency"
    MEMORY = "memory"
    RETIRED_DATA = "retired-data"


def promote(
    bundle: Annotated[
        str,
        typer.Argument(
            help="Folder of the bundle, a registered version, or name or MLflow run of its training or sweep."
        ),
    ],
    data: Annotated[Path, typer.Option(help="Dataset the bundle was trained on; the gate scores its held-out cases.")],
    locator: Annotated[
        Path | None, typer.Option(help="Bundle of the same data on a coarser grid, which localises the tumour.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be tested; score nothing.")] = False,
    gain: Annotated[
        Gain | None,
        typer.Option(help="Accept a model that is not worse than the champion, for this gain; recorded as such."),
    ] = None,
    reason: Annotated[
        str,
        typer.Option("--override-gate", metavar="REASON", help="Promote a refused model for this reason; recorded."),
    ] = "",
    by: ByOption = None,
    workspace: WorkspaceOption = WORKSPACE,
    config: ConfigOption = None,
    override: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a bundle the champion if it passes the promotion gate.

    The gate scores the bundle, the current champion and a baseline on the held-out cases. The bundle must be better
    than both: the lower bound of the paired difference in DSC must exceed zero, at a level that becomes stricter with
    every model scored on the same cases. The decision, with all evidence, is recorded in the workspace and in MLflow.

    With inference.KEY=VALUE or --locator (for inference.mode=localised) a new bundle with the same networks and these
    inference settings is scored and promoted.

    Example: gtvray promote gtvray-runs/bundles/NAME --data Naso_GTV
    """
    from gtvray import api
    from gtvray.config import flatten, load_config

    base = load_config(config, override or [])
    asked = [item.partition("=")[0] for item in override or [] if item.startswith("inference.")]
    inference = {key.removeprefix("inference."): flatten(base)[key] for key in asked}
    progress = Progress({"prepare": 10, "evaluate": 30}, as_json)
    with progress.live():
        if dry_run:
            plan = api.plan_promotion(
                bundle, data, locator=locator, inference=inference, workspace=workspace, config=base, show=progress
            )
            emit(asdict(plan), as_json, _describe(plan))
            return
        promoted = api.promote(
            bundle,
            data,
            locator=locator,
            inference=inference,
            gain=gain.value if gain is not None else None,
            override=reason,
            by=by,
            workspace=workspace,
            config=base,
            show=progress,
            on_plan=lambda plan: progress.note(_describe(plan)),
        )
    judgement = promoted.judgement
    found = {
        "version": promoted.version.version,
        "digest": promoted.digest,
        "licence": promoted.version.licence,
        "record": str(promoted.record),
        **asdict(judgement),
    }
    emit(found, as_json, _summary(promoted))


def rollback(
    restore: Annotated[
        bool,
        typer.Option("--restore", help="Restore the last decided champion after a change made in MLflow."),
    ] = False,
    by: ByOption = None,
    workspace: WorkspaceOption = WORKSPACE,
    config: ConfigOption = None,
    override: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make the previous champion the champion again.

    Repeated rollbacks go further back. With --restore the champion of the last decision is restored instead: the
    alias is set to it, and if its version was deleted in MLflow, the bundle is registered again.

    Example: gtvray rollback
    """
    from gtvray import api
    from gtvray.config import load_config

    version = api.rollback(restore=restore, by=by, workspace=workspace, config=load_config(config, override or []))
    emit(asdict(version), as_json, f"version {version.version} is champion again")


def _describe(plan: PromotionPlan) -> str:
    """State what the gate will test."""
    lines = [
        f"{plan.cases} held-out cases (at least {plan.min_cases} are required); "
        f"{plan.looks} models scored on them, this one included"
    ]
    first = plan.champion is None
    reference = "the baseline" if first else f"version {plan.champion}"
    lines.append(
        f"{'no champion yet: ' if first else ''}it must be better than {reference} at a confidence level of "
        f"{100 * plan.level:.4g} %; these cases detect a gain of {plan.detectable:.3f} DSC over it with a power of "
        "80 %, for the assumed spread"
    )
    return "\n".join(lines)


def _summary(promoted: Promotion) -> str:
    judgement = promoted.judgement
    over = []
    for name, gain in (("champion", judgement.over_champion), ("baseline", judgement.difference)):
        if gain is not None:
            over.append(f"DSC {gain.mean:+.3f} over the {name} (lower bound {gain.low:+.3f})")
    lines = [", ".join([f"version {promoted.version.version} is champion", *over])]
    if judgement.overridden:
        lines += ["the gate was overridden; it had refused the model:", *(f"- {each}" for each in judgement.reasons)]
    licence = f"licence of the training data: {promoted.version.licence or 'not stated'}"
    return "\n".join([*lines, *judgement.warnings, licence, f"record: {promoted.record}"])
