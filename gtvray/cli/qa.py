"""`gtvray qa`: does a promoted model do on this host, with these versions, what it was promoted for?"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from gtvray import NOTICE
from gtvray.cli.common import WORKSPACE, ConfigOption, JsonOption, ModelOption, SetOption, WorkspaceOption, emit, table


def qa(
    model: ModelOption = "champion",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; by default those of the promotion.")] = None,
    propose: Annotated[
        bool, typer.Option("--propose", help="Time every backend on the golden cases as well; nothing is changed.")
    ] = False,
    workspace: WorkspaceOption = WORKSPACE,
    config: ConfigOption = None,
    override: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Reproduce a promoted model's golden cases here; exit code 1 if a mask is another. Run it after every upgrade.

    Example: gtvray qa --model champion
    """
    from gtvray.api import find_golden, load_bundle
    from gtvray.config import load_config
    from gtvray.evaluation import REPRODUCED_DICE, golden_threads, reproduce, stack
    from gtvray.inference import Predictor
    from gtvray.io import Workspace
    from gtvray.promotion import time_backends

    place, settings = Workspace(workspace), load_config(config, override or [])
    bundle = load_bundle(model, place, settings)
    folder = find_golden(bundle, place, settings)
    count = threads or golden_threads(folder)
    results = reproduce(folder, Predictor(bundle, threads=count))
    timings = (
        [asdict(timing) | {"alike": timing.alike} for timing in time_backends(bundle, folder, count)] if propose else []
    )
    ok = all(result.ok for result in results)
    found = {
        "ok": ok,
        "identical": all(result.identical for result in results),
        "digest": bundle.digest,
        "stack": stack(),
        "cases": [asdict(result) for result in results],
        **({"backends": timings} if propose else {}),
        "notice": NOTICE,
    }
    rows = [{"case": result.case, "dice": f"{result.dice:.5f}", "masks": _word(result.identical)} for result in results]
    verdict = "reproduced" if ok else f"NOT reproduced: Dice below {REPRODUCED_DICE:g}; do not serve this model here"
    shown = table(rows, {"case": "case", "dice": "Dice", "masks": "masks"})
    emit(found, as_json, f"{shown}\n{verdict}\n{_proposal(timings)}{NOTICE}")
    if not ok:
        raise typer.Exit(1)


def _proposal(timings: list[dict[str, Any]]) -> str:
    if not timings:
        return ""
    columns = {"backend": "backend", "precision": "precision", "seconds": "s", "worst_dice": "worst Dice"}
    best = timings[0]
    settings = f"inference.backend={best['backend']} inference.precision={best['precision']}"
    word = (
        f"the gate may accept the fastest alike: gtvray promote BUNDLE --data DIR {settings}" if best["alike"] else ""
    )
    return f"{table(timings, {**columns, 'why_not': 'why not'})}\n{word}\n"


def _word(identical: bool) -> str:
    return "identical" if identical else "differ"
