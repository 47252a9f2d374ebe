"""Ablations: variants of the settings, trained on a part of the training cases and scored on another part."""

from __future__ import annotations

import re
from argparse import Namespace
from itertools import product
from typing import Any

import yaml
from _accuracy_contest import Cases, budgeted, contest, folds_of, preparation
from _accuracy_jobs import digest_of
from _accuracy_report import Table, over

from gtvray.config import Config, read_yaml, with_dotted
from gtvray.errors import InputError
from gtvray.io import read_json, write_json

Variants = dict[str, dict[str, Any]]

FOLDS, FOLD_SEED = 5, 0
BASE = "base"
# A comma between two settings, not one within the brackets of a value.
_NEXT_SETTING = re.compile(r",(?=[a-z_]+\.[a-z_]+=)")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def variants_of(given: Namespace) -> Variants:
    """Return name -> dotted key -> value of the requested variants, the unchanged settings first; empty if none.

    Raises:
        InputError: a name is invalid or given twice.
    """
    found = read_yaml(given.ablations) if given.ablations else {}
    for item in given.ablate:
        name, _, settings = item.partition("=")
        pairs = [setting.partition("=") for setting in _NEXT_SETTING.split(settings)]
        if name in found:
            raise InputError("two variants with the same name", found=name)
        found[name] = {key: yaml.safe_load(value) for key, _, value in pairs}
    for name, settings in found.items():
        if not _NAME.fullmatch(str(name)) or name == BASE or not isinstance(settings, dict):
            expected = f"NAME=key=value, or NAME: {{key: value}} in a file; {BASE} stands for the unchanged settings"
            raise InputError("not a variant", expected=expected, found=f"{name}: {settings}")
    return {BASE: {}, **found} if found else {}


def run_ablations(given: Namespace, config: Config, variants: Variants) -> dict[str, Any]:
    """Run each variant, seed and fold beside the unchanged settings; each row is stored as soon as it is done."""
    data, rows = Cases.open(given.data), []
    for fold, seed in product(given.ablation_folds, given.ablation_seeds):
        base: Table | None = None
        for name, overrides in variants.items():
            changed = with_dotted(config, overrides, f"variant {name}")
            settings = budgeted(changed, given, seed, given.ablation_minutes, given.ablation_epochs)
            folds = folds_of(preparation(given, settings, data)[0]["tumour_ml"], data, config, FOLDS, FOLD_SEED)
            judging = data.only(folds.validation[fold])
            table = contest(given, f"{name}_{seed}-fold{fold}", settings, data.only(folds.train(fold)), judging)
            base = table if base is None else base
            rows.append({"name": name, "overrides": overrides, "fold": fold, "seed": seed, **row_of(table, base)})
            keep_row(given, rows[-1])
    return {"benchmark": "accuracy", "ablations": rows}


def row_of(table: Table, base: Table) -> dict[str, Any]:
    """The results of a variant, and its paired difference to the unchanged settings."""
    keys = ("config", "train_s", "train_cpu_s", "train_load", "prepare_s", "steps", "threshold", "versions")
    [training] = table["trainings"]
    scores = {case["case"]: case["dsc"] for case in table["cases"]}
    return {
        **table["summary"],
        "over_base": over(scores, {case["case"]: case["dsc"] for case in base["cases"]}) if table is not base else None,
        "judged_by": len(scores),
        **{key: table[key] for key in keys},
        "epochs": training["epochs"],
        "precision": training["precision"],
        "settings": digest_of({**table["settings"], "data": table["train"]}),
        "shaped": table["settings"],
    }


def keep_row(given: Namespace, row: dict[str, Any]) -> None:
    """Add a row to the table of ablations; it replaces one of the same variant, fold, seed and settings."""
    file = given.results / "accuracy_ablations.json"
    rows = read_json(file) if file.exists() else []
    same = ("name", "fold", "seed", "settings")
    write_json(file, [*(old for old in rows if any(old[key] != row[key] for key in same)), row])
