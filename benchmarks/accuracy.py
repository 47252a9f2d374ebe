"""Accuracy on held-out cases after a short training on few cores: gtvray, a reduced nnU-Net, and the mean mask.

All contestants train on the cases of --data with --threads CPU threads, and every mask of --val is scored by
`gtvray.evaluation.score_case` on the grid of the scan. gtvray trains with the settings of --config through library
calls, once per seed. The budget is --minutes of elapsed time, or --epochs for a fixed amount of work on a shared
machine; seconds and CPU seconds are reported in either case, without preparation, as for nnU-Net. It is divided
among --folds trainings, as in `gtvray train --fold all`: each on all cases except its fold, with one thread, in
parallel; their networks form an ensemble whose threshold is calibrated out of fold. `quarter` is one training with a
quarter of the budget on all cases except `training.selection_cases`, which are used for calibration. `minutes` is the
slowest training of gtvray with its calibration. `cpu_to_nnunet` is the CPU time of gtvray divided by that of nnU-Net.

Peers: five epochs of 250 steps of a reduced nnU-Net, in its own environment (--nnunet-python), and the mean
position of the training masks. `diff_low` and `diff_high` are the paired 95 % interval of the difference of gtvray,
averaged over seeds per case, to the peer with the better mean DSC. A peer that is not available is null.

Every stage runs in its own process, imports not timed, and its result is stored under --work: a finished stage is not
run again, and an interrupted training resumes from its checkpoint. Tables per case are written to --results; a stored
table of a peer on the same data replaces a run. Every model that is scored on --val gets a row in --ledger.
Without --data nothing is run: the results are computed from the stored tables.

    python benchmarks/accuracy.py --json --data DIR/train --val DIR/val --config benchmarks/accuracy.yaml --work FOLDER
        [--minutes 58 | --epochs N] [--seeds 0,1,2] [--nnunet-python /path/to/its/bin/python] [key=value ...]

With --ablate or --ablations, variants of the settings are trained on four fifths of --data and scored on the other
fifth, beside the unchanged settings, "base"; --val is not used. Rows are written to accuracy_ablations.json.

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
# The number of nnU-Net; other numbers are for testing the peer and have tables of their own.
PEER_STEPS = 250


def main() -> None:
    """Run the benchmark and print one JSON line."""
    given = arguments()
    # A running stage must end with this process.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        found = run(given)
    except GtvrayError as error:
        sys.exit(str(error))
    print(json.dumps({**found, "versions": versions(), "machine": machine(given.threads)}))


def run(given: argparse.Namespace) -> dict[str, Any]:
    """Run the benchmark or the ablations."""
    if given.data is None:
        return stored_figure(given.results)
    config, variants = load_config(given.config, given.override), variants_of(given)
    with only_one(given.work):
        return run_ablations(given, config, variants) if variants else run_figure(given, config)


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("override", nargs="*", metavar="key=value", help="settings that override --config")
    add("--json", action="store_true", help="no effect; the output is always JSON")
    add("--data", type=Path, help="training dataset")
    add("--val", type=Path, help="evaluation dataset; must not contain a scan of --data")
    add("--config", type=Path, help="a YAML file of settings, as for `gtvray train`")
    add("--work", type=Path, default=Path("gtvray-runs/accuracy"), help="folder for results of stages")
    add("--minutes", type=float, default=GOALS["minutes"], help="elapsed time of a training")
    add("--epochs", type=int, help="epochs of a training instead of --minutes")
    add("--seeds", type=numbers, default=[0, 1, 2], help="seeds; one training each")
    add("--quarter-seeds", type=numbers, help="seeds with a quarter of the budget; default: --seeds; none: ''")
    add("--folds", type=int, default=4, help="trainings that share the budget and form an ensemble")
    add("--threads", type=int, default=os.cpu_count())
    add("--nnunet-python", type=Path, default=os.environ.get("GTVRAY_BENCH_NNUNET"))
    add("--peer-steps", type=int, default=PEER_STEPS, help="steps per epoch of nnU-Net; fewer for a test")
    add("--results", type=Path, default=HERE / "results", help="folder for tables")
    add("--ledger", type=Path, default=HERE / "LEDGER.md", help="page on which every evaluation on --val is recorded")
    add("--ablate", action="append", default=[], metavar="NAME=key=value[,key=value]", help="a variant, repeatable")
    add("--ablations", type=Path, help="a YAML file of variants: name -> dotted key -> value")
    add("--ablation-minutes", type=float, default=10.0)
    add("--ablation-epochs", type=int, help="epochs instead of minutes")
    add("--ablation-folds", type=numbers, default=[0], help=f"folds (of {FOLDS}) of --data to evaluate on")
    add("--ablation-seeds", type=numbers, default=[0])
    given = parser.parse_intermixed_args()
    if given.data is not None and given.val is None and not (given.ablate or given.ablations):
        parser.error("--data needs --val, --ablate or --ablations")
    if not set(given.ablation_folds) <= set(range(FOLDS)):
        parser.error(f"--ablation-folds must be 0 to {FOLDS - 1}")
    return given


def numbers(text: str) -> list[int]:
    """Parse integers separated by commas."""
    return [int(part) for part in text.split(",") if part]


def run_figure(given: argparse.Namespace, config: Config) -> dict[str, Any]:
    """Run every contestant and compute the results from their tables."""
    data, val = Cases.open(given.data), Cases.open(given.val)
    require_apart(data, val)
    peers: dict[str, Table | None] = {MEAN: mean_table(given, data, val)}
    short = given.seeds if given.quarter_seeds is None else given.quarter_seeds
    ours = [our_table(given, config, data, val, seed=seed, share=1.0) for seed in given.seeds]
    quarter = [our_table(given, config, data, val, seed=seed, share=QUARTER_SHARE) for seed in short]
    peers[NNUNET] = nnunet_table(given, data, val)
    return figure(ours, quarter, peers)


def our_table(given: argparse.Namespace, config: Config, data: Cases, val: Cases, *, seed: int, share: float) -> Table:
    """Run gtvray with a seed and a share of the budget: all of it is divided among folds, less is one training."""
    epochs = max(1, round(given.epochs * share)) if given.epochs else None
    name, folds = (OURS, given.folds) if share == 1.0 else (QUARTER, 1)
    # Each fold has one thread, and as many folds as there are threads are trained in parallel.
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
