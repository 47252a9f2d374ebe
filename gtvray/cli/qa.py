"""`gtvray qa`: check that a promoted model reproduces its golden cases on this host with the installed versions."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from gtvray import NOTICE
from gtvray.cli.common import WORKSPACE, ConfigOption, JsonOption, ModelOption, SetOption, WorkspaceOption, emit, table


def qa(
    model: ModelOption = "champion",
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads; default: as many as at the promotion.")
    ] = None,
    propose: Annotated[
        bool, typer.Option("--propose", help="Also time every backend on the golden cases; changes nothing.")
    ] = False,
    workspace: WorkspaceOption = WORKSPACE,
    config: ConfigOption = None,
    override: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Reproduce a promoted model's golden cases on this host.

    Run it after every upgrade. The exit code is 1 if a mask falls below Dice 0.999, the tolerance for another stack.

    Example: gtvray qa --model champion
    """
    from gtvray.api import find_golden, load_bundle
    from gtvray.config import load_config
    from gtvray.evaluation import REPRODUCED_DICE, golden_threads, reproduce, stack
    from gtvray.inference import Predictor
    from gtvray.io import Workspace
    from gtvray.promotion import time_backends

    folders, settings = Workspace(workspace), load_config(config, override or [])
    bundle = load_bundle(model, folders, settings)
    folder = find_golden(bundle, folders, settings)
    count = threads or golden_threads(folder)
    results = reproduce(folder, Predictor(bundle, threads=count))
    timings = (
        [asdict(timing) | {"alike": timing.alike} for timing in time_backends(bundle, folder, count)] if propose else []
    )
    ok = all(each.ok for each in results)
    result = {
        "ok": ok,
        "identical": all(each.identical for each in results),
        "digest": bundle.digest,
        "stack": stack(),
        "cases": [asdict(each) for each in results],
        **({"backends": timings} if propose else {}),
        "notice": NOTICE,
    }
    rows = [
        {"case": each.case, "dice": f"{each.dice:.5f}", "masks": "identical" if each.identical else "differ"}
        for each in results
    ]
    verdict = (
        "reproduced" if ok else f"NOT reproduced: Dice below {REPRODUCED_DICE:g}; do not serve this model on this host"
    )
    cases = table(rows, {"case": "case", "dice": "Dice", "masks": "masks"})
    emit(result, as_json, f"{cases}\n{verdict}\n{_proposal(timings)}{NOTICE}")
    if not ok:
        raise typer.Exit(1)


def _proposal(timings: list[dict[str, Any]]) -> str:
    if not timings:
        return ""
    columns = {"backend": "backend", "precision": "precision", "seconds": "s", "worst_dice": "worst Dice"}
    best = timings[0]
    settings = f"inference.backend={best['backend']} inference.precision={best['precision']}"
    advice = (
        f"fastest with matching masks; the gate decides on it: gtvray promote BUNDLE --data DIR {settings}"
        if best["alike"]
        else ""
    )
    return f"{table(timings, {**columns, 'why_not': 'reason not usable'})}\n{advice}\n"
