"""Error rates and power of the promotion gate, and the time of a promotion and a rollback.

A draw resamples n cases of the recorded per-case scores of two real models (33 head-and-neck CTs, `benchmarks/results`)
and asks the gate. None of the recorded models missed a tumour, so error rates are also measured with 3 % of the cases
missed by each model at random.

- equal: candidate and champion are exchanged case by case at random, so neither is better.
- worse: as equal, with the candidate's DSC lowered by the non-inferiority margin, under both rules.
- power: as equal, with the candidate's DSC raised by 0.02 or 0.05.
- the same for the tenth model that is scored on the cases.

The decision is that of the complete gate with its guards; `primary` counts its primary test alone. The models are two
seeds of a recipe, two recipes, or the recipe and a peer: each draw takes a pair at random.

    python benchmarks/gate.py --json [--draws N]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import version

from gtvray.config import InferenceConfig, NetworkConfig, PreprocessingConfig, PromotionConfig
from gtvray.evaluation import CaseScore
from gtvray.models import Bundle, build_network, weights_of, write_bundle
from gtvray.promotion import Cost, Evidence, Gain, Request, judge, promote, rollback
from gtvray.registry import DecisionLog, Registry
from gtvray.tracking import connect_mlflow

RESULTS = Path(__file__).parent / "results"
PAIRS = (("ours_0", "ours_1"), ("ours_0", "ours_2"), ("ours_1", "ours_2"), ("ours_0", "single_0"),
         ("ours_0", "ours-quarter_0"), ("ours_0", "mean"))  # fmt: skip
CASES, LOOKS, DIAGONAL_MM = (20, 50, 83), (1, 10), 600.0
# Shift of the candidate's DSC, named gain, share of missed cases.
ENTRIES: tuple[tuple[float, Gain | None, float], ...] = (
    (0.0, None, 0.0),
    (0.0, None, 0.03),
    (-0.02, None, 0.0),
    (-0.02, None, 0.03),
    (-0.02, "retired-data", 0.0),
    (-0.02, "retired-data", 0.03),
    (0.02, None, 0.0),
    (0.05, None, 0.0),
)
PROMOTIONS = 5


def main() -> None:
    """Measure and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="no effect; the output is always JSON")
    parser.add_argument("--draws", type=int, default=2000, help="draws of each entry")
    options = parser.parse_args()
    scores = recorded()
    began, rates = time.perf_counter(), {}
    for looks in LOOKS:
        for count in CASES:
            for shift, gain, missed in ENTRIES:
                if looks > 1 and missed:
                    continue
                kind = f"{shift:+.2f}{' non-inferiority' if gain else ''}{' missed' if missed else ''}"
                name = f"{kind}, n={count}, look {looks}"
                rates[name] = rate(scores, count, looks, options.draws, shift=shift, gain=gain, missed=missed)
                print(f"{name}: {rates[name]}", flush=True)
    promoting = time_promotions()
    power = {
        shift: {str(n): rates[f"{shift}, n={n}, look 1"]["accepted"] for n in CASES} for shift in ("+0.02", "+0.05")
    }
    found = {
        "false_promotions": max(entry["primary"] for name, entry in rates.items() if name.startswith("+0.00")),
        "false_worse": max(entry["primary"] for name, entry in rates.items() if name.startswith("-0.02")),
        "power_002": power["+0.02"],
        "power_005": power["+0.05"],
        **promoting,
        "rates": rates,
        "draws": options.draws,
        "seconds": round(time.perf_counter() - began, 1),
        "cpus": os.cpu_count(),
        "load": os.getloadavg()[0],
        "versions": {name: version(name) for name in ("numpy", "scipy", "mlflow", "torch")},
        "python": platform.python_version(),
    }
    print(json.dumps(found))


def recorded() -> dict[str, list[tuple[float, float]]]:
    """DSC and HD95 of every case, by model, in one order of the cases."""
    found = {}
    for name in {name for pair in PAIRS for name in pair}:
        cases = json.loads((RESULTS / f"accuracy_{name}.json").read_text())["cases"]
        by_case = {case["case"]: (case["dsc"], case["hd95_mm"]) for case in cases}
        found[name] = [by_case[case] for case in sorted(by_case)]
    assert len({len(cases) for cases in found.values()}) == 1
    return found


def rate(
    scores: dict[str, list[tuple[float, float]]],
    count: int,
    looks: int,
    draws: int,
    *,
    shift: float,
    gain: Gain | None,
    missed: float,
) -> dict[str, float]:
    """Share of draws in which the gate accepts, and in which its primary test alone would."""
    rng = np.random.default_rng([count, looks, round(1000 * (shift + 1)), bool(gain), round(1000 * missed)])
    config, accepted, primary = PromotionConfig(), 0, 0
    for _ in range(draws):
        first, second = draw(scores, rng, count, missed)
        first[:, 0] += shift
        judgement = judge(evidence_of(first, second, looks), config, Request("benchmark", gain))
        assert judgement.over_champion is not None
        accepted += judgement.accepted
        primary += judgement.over_champion.low > (-config.noninferiority_margin if gain else 0.0)
    return {"accepted": accepted / draws, "primary": primary / draws}


def draw(
    scores: dict[str, list[tuple[float, float]]], rng: np.random.Generator, count: int, missed: float
) -> tuple[np.ndarray, np.ndarray]:
    """DSC and HD95 of two equal models: resampled cases of a recorded pair whose scores are exchanged at random."""
    one, other = (np.asarray(scores[name]) for name in PAIRS[rng.integers(len(PAIRS))])
    chosen, exchanged = rng.integers(len(one), size=count), rng.random((count, 1)) < 0.5
    first = np.where(exchanged, one[chosen], other[chosen])
    second = np.where(exchanged, other[chosen], one[chosen])
    for values in (first, second):
        values[rng.random(count) < missed] = (0.0, DIAGONAL_MM)
    return first, second


def evidence_of(first: np.ndarray, second: np.ndarray, looks: int) -> Evidence:
    """Evidence with these scores of candidate and champion."""
    cost = Cost(1.0, 1000.0, "benchmark")
    return Evidence(
        digest="candidate",
        data="benchmark",
        candidate=case_scores(first),
        baseline=case_scores(np.zeros_like(first)),
        loads_fresh=True,
        looks=looks,
        champion_digest="champion",
        champion=case_scores(second),
        golden=True,
        cost=cost,
        champion_cost=cost,
    )


def case_scores(values: np.ndarray) -> tuple[CaseScore, ...]:
    """Scores of cases with these values of DSC and HD95."""
    rest = (2.0, 0.5, 0.6, 0.9, 2.0, 20.0, 20.0, 100.0, 1, 0, 0)
    return tuple(
        CaseScore(str(number), (1.0, 1.0, 3.0), float(dsc), float(hd95), *rest, missed=bool(hd95 >= DIAGONAL_MM))
        for number, (dsc, hd95) in enumerate(values)
    )


def time_promotions() -> dict[str, Any]:
    """Seconds of promotions and rollbacks of small bundles in an SQLite store, after the scoring."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        client = connect_mlflow(f"sqlite:///{root / 'mlflow.db'}", root / "artifacts")
        run_id = client.create_run(client.create_experiment("e", (root / "artifacts").as_uri())).info.run_id
        registry = Registry(client, "model", root / "bundles")
        log = DecisionLog(client, "model", root / "artifacts", "benchmark")
        promoted, rolled_back, previous = [], [], ""
        rng = np.random.default_rng(0)
        base = np.column_stack([rng.uniform(0.5, 0.6, 50), rng.uniform(5, 6, 50)])
        for number in range(PROMOTIONS):
            bundle = small_bundle(root / f"made-{number}", number)
            evidence = Evidence(
                bundle.digest,
                "benchmark",
                case_scores(base + np.array([0.05 * (number + 1), 0.0])),
                case_scores(np.zeros_like(base)),
                loads_fresh=True,
                looks=1,
                champion_digest=previous,
                champion=case_scores(base + np.array([0.05 * number, 0.0])) if previous else (),
            )
            began = time.perf_counter()
            promote(
                bundle, run_id, evidence,
                config=PromotionConfig(), registry=registry, log=log, records=root / "decisions",
            )  # fmt: skip
            promoted.append(round(time.perf_counter() - began, 2))
            previous = bundle.digest
        for _ in range(PROMOTIONS - 1):
            began = time.perf_counter()
            rollback(registry, log)
            rolled_back.append(round(time.perf_counter() - began, 2))
        return {
            "promote_s": min(promoted),
            "rollback_s": min(rolled_back),
            "promote_all_s": promoted,
            "rollback_all_s": rolled_back,
        }


def small_bundle(folder: Path, seed: int) -> Bundle:
    """A bundle of random weights."""
    torch.manual_seed(seed)
    network, patch_ijk = NetworkConfig(features=(4, 4, 8)), (16, 16, 16)
    return write_bundle(
        folder,
        weights=weights_of(build_network(network, 1, (4.0, 4.0, 4.0), patch_ijk)),
        preprocessing=PreprocessingConfig(spacing_mm=(4.0, 4.0, 4.0)),
        network=network,
        inference=InferenceConfig(),
        patch_ijk=patch_ijk,
        info={"seed": seed},
    )


if __name__ == "__main__":
    main()
