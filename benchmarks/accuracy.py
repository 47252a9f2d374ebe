"""Accuracy on held-out cases after a short training on few cores: ours, a reduced nnU-Net, and the mean mask.

Everyone learns from the cases of --data, with --threads CPU threads, and every mask of --val is scored by
`gtvray.evaluation.score_case` on the scan's own grid. Ours trains with the settings of --config through the library's
own calls, once a seed. Its budget is --minutes of wall-clock, or --epochs for fixed work where a machine is shared;
seconds and CPU seconds are told in either case, preparing apart, as nnU-Net's is. The budget is divided among --folds
trainings, as `gtvray train --fold all` has them: each on all cases but its fold, with one thread, side by side; their
networks are one ensemble, its threshold calibrated out of fold. `quarter` is one training with a quarter of the budget,
on all cases but `training.selection_cases` of them, which calibrate. `minutes` is the slowest of ours with its
calibration. `cpu_to_nnunet` is our CPU time over nnU-Net's.

Peers: five epochs of 250 steps of a reduced nnU-Net, in an environment of its own (--nnunet-python), and the mean
position of the training masks. `diff_low` and `diff_high` are the paired 95 % interval of ours, averaged over seeds
case by case, over the peer with the better mean DSC. A peer that is not available is null.

Every stage is a process of its own, imports not timed, whose result is kept under --work: one that is there is not run
again, and a training that was cut off goes on from its checkpoint. Tables by case go to --results. A peer's table of
the same data that lies there takes the place of a run. Every model that has looked at --val gets a row in --ledger.
Without --data nothing is run: the figure is computed from the tables that are kept.

    python benchmarks/accuracy.py --json --data DIR/train --val DIR/val --config benchmarks/accuracy.yaml --work FOLDER
        [--minutes 58 | --epochs N] [--seeds 0,1,2] [--nnunet-python /path/to/its/bin/python] [key=value ...]

With --ablate or --ablations, variants of the settings are trained on four fifths of --data and judged by the other
fifth; --val is not looked at. Beside them the settings as they are, "base". Rows go to accuracy_ablations.json.

    python benchmarks/accuracy.py --json --data DIR/train --config benchmarks/accuracy.yaml --work FOLDER
        --ablations benchmarks/ablations.yaml --threads 1 --ablation-epochs 3
        [--ablate plain=augmentation.strength=0 --ablate "wide=training.patch_ijk=[64,64,64],training.batch_size=1"]
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from _accuracy_ablations import FOLDS, run_ablations, variants_of
from _accuracy_contest import Cases, budgeted, contest, require_apart
from _accuracy_jobs import only_one
from _accuracy_peers import mean_table, nnunet_table
from _accuracy_report import (
    GOALS,
    MEAN,
    NNUNET,
    OURS,
    QUARTER,
    QUARTER_SHARE,
    Table,
    figure,
    machine,
    record_look,
    stored_figure,
    table_file,
    versions,
)

from gtvray.config import Config, load_config
from gtvray.errors import GtvrayError
from gtvray.io import write_json

HERE = Path(__file__).parent
# nnU-Net's own; another number is for trying the peer out, and its table is not taken for this one's.
PEER_STEPS = 250


def main() -> None:
    """Run what was asked for and print one JSON line."""
    given = arguments()
    # So that a stage under way ends with this process.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        found = run(given)
    except GtvrayError as error:
        sys.exit(str(error))
    print(json.dumps({**found, "versions": versions(), "machine": machine(given.threads)}))


def run(given: argparse.Namespace) -> dict[str, Any]:
    """The figure, or the ablations."""
    if given.data is None:
        return stored_figure(given.results)
    config, variants = load_config(given.config, given.override), variants_of(given)
    with only_one(given.work):
        return run_ablations(given, config, variants) if variants else run_figure(given, config)


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("override", nargs="*", metavar="key=value", help="settings over those of --config")
    add("--json", action="store_true", help="accepted for uniformity; JSON is all that is printed")
    add("--data", type=Path, help="a dataset to learn from")
    add("--val", type=Path, help="a dataset to be judged by; no scan of --data may be in it")
    add("--config", type=Path, help="a YAML file of settings, as `gtvray train` takes it")
    add("--work", type=Path, default=Path("gtvray-runs/accuracy"), help="folder of stages")
    add("--minutes", type=float, default=GOALS["minutes"], help="wall-clock of a training")
    add("--epochs", type=int, help="of a training, in place of --minutes")
    add("--seeds", type=numbers, default=[0, 1, 2], help="one training each")
    add("--quarter-seeds", type=numbers, help="the same with a quarter of the budget; those of --seeds, or none: ''")
    add("--folds", type=int, default=4, help="trainings that share the whole budget, whose networks are one ensemble")
    add("--threads", type=int, default=os.cpu_count())
    add("--nnunet-python", type=Path, default=os.environ.get("GTVRAY_BENCH_NNUNET"))
    add("--peer-steps", type=int, default=PEER_STEPS, help="nnU-Net's steps an epoch; fewer are for trying it out")
    add("--results", type=Path, default=HERE / "results", help="folder of tables")
    add("--ledger", type=Path, default=HERE / "LEDGER.md", help="page that every look at --val is written to")
    add("--ablate", action="append", default=[], metavar="NAME=key=value[,key=value]", help="a variant; repeatable")
    add("--ablations", type=Path, help="a YAML file of variants: name -> dotted key -> value")
    add("--ablation-minutes", type=float, default=10.0)
    add("--ablation-epochs", type=int, help="in place of minutes")
    add("--ablation-folds", type=numbers, default=[0], help=f"which of {FOLDS} folds of --data are to judge")
    add("--ablation-seeds", type=numbers, default=[0])
    given = parser.parse_intermixed_args()
    if given.data is not None and given.val is None and not (given.ablate or given.ablations):
        parser.error("--data needs --val, --ablate or --ablations")
    if not set(given.ablation_folds) <= set(range(FOLDS)):
        parser.error(f"--ablation-folds are of 0 to {FOLDS - 1}")
    return given


def numbers(text: str) -> list[int]:
    """Numbers with commas."""
    return [int(part) for part in text.split(",") if part]


def run_figure(given: argparse.Namespace, config: Config) -> dict[str, Any]:
    """Every contestant, and what their tables come to."""
    data, val = Cases.open(given.data), Cases.open(given.val)
    require_apart(data, val)
    peers: dict[str, Table | None] = {MEAN: mean_table(given, data, val)}
    short = given.seeds if given.quarter_seeds is None else given.quarter_seeds
    ours = [our_table(given, config, data, val, seed=seed, share=1.0) for seed in given.seeds]
    quarter = [our_table(given, config, data, val, seed=seed, share=QUARTER_SHARE) for seed in short]
    peers[NNUNET] = nnunet_table(given, data, val)
    return figure(ours, quarter, peers)


def our_table(given: argparse.Namespace, config: Config, data: Cases, val: Cases, *, seed: int, share: float) -> Table:
    """Ours with one seed and a share of the budget: all of it is divided among folds, less goes into one training."""
    epochs = max(1, round(given.epochs * share)) if given.epochs else None
    name, folds = (OURS, given.folds) if share == 1.0 else (QUARTER, 1)
    # Folds have a thread each, and as many are trained at once as there are threads.
    minutes = given.minutes * share * (min(folds, given.threads) if folds > 1 else 1) / folds
    settings = budgeted(config, given, seed, minutes, max(1, round(epochs / folds)) if epochs else None)
    found = contest(given, f"{name}_{seed}", settings, data, val, folds=folds)
    asked = f"{epochs} epoch{'s' * (epochs > 1)}" if epochs else f"{given.minutes * share:g} minutes"
    table = {"contestant": name, "seed": seed, "budget": asked, **found}
    source = f"`{given.config.name}`" if given.config else "the defaults"
    what = f"ours, bundle of {source}, seed {seed}, digest"
    record_look(given.ledger, what, f"accuracy figure, {asked}", found["digest"], found["summary"])
    write_json(table_file(given.results, name, seed), table)
    return {**table, "from": "run"}


if __name__ == "__main__":
    main()
