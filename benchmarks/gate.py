"""Error rates and power of the promotion gate, and the time of a promotion and a rollback.

A draw resamples n cases of the recorded per-case scores of two real models (33 head-and-neck CTs, `benchmarks/results`)
and runs the gate. None of the recorded models missed a tumour, so everything is also measured with 3 % of the cases
missed by each model at random.

- equal: candidate and champion are exchanged case by case at random, so neither is better.
- worse: as equal, with the candidate's DSC lowered by the non-inferiority margin, under both rules.
- power: as equal, with the candidate's DSC raised by 0.02 or 0.05.
- the same for the tenth model that is scored on the cases.

The decision is that of the complete gate with its guards; `primary` counts its primary test alone. The models are two
seeds of a recipe, two recipes, or the recipe and a peer: each draw takes a pair at random.

The gate is the product's own. Only the means of its 10,000 resamples are computed faster, by a matrix that holds the
share of each case in each resample; the first draws of every entry are judged without it as well and must agree.

Results are written after every entry, and a further run continues with the entries that are missing.

    python benchmarks/gate.py --json [--draws N] [--results FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import version

from gtvray.config import InferenceConfig, NetworkConfig, PreprocessingConfig, PromotionConfig
from gtvray.evaluation import CaseScore, statistics
from gtvray.io import write_json
from gtvray.models import Bundle, build_network, weights_of, write_bundle
from gtvray.promotion import Cost, Evidence, Gain, Judgement, Request, judge, promote, rollback
from gtvray.registry import DecisionLog, Registry
from gtvray.tracking import connect_mlflow

RESULTS = Path(__file__).parent / "results"
PAIRS = (("ours_0", "ours_1"), ("ours_0", "ours_2"), ("ours_1", "ours_2"), ("ours_0", "single_0"),
         ("ours_0", "ours-quarter_0"), ("ours_0", "mean"))  # fmt: skip
CASES, LOOKS, DIAGONAL_MM = (20, 50, 83), (1, 10), 600.0
# Shift of the candidate's DSC, and named gain.
ENTRIES: tuple[tuple[float, Gain | None], ...] = (
    (0.0, None),
    (-0.02, None),
    (-0.02, "retired-data"),
    (0.02, None),
    (0.05, None),
)
MISSED = (0.0, 0.03)
# Draws of each entry that are judged with and without the faster resampling.
CHECKED = 20
PROMOTIONS = 5
_product_means = statistics._resampled_means


def main() -> None:
    """Measure and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="no effect; the output is always JSON")
    parser.add_argument("--draws", type=int, default=2000, help="draws of each entry")
    parser.add_argument("--results", type=Path, default=RESULTS / "gate.json", help="file that is continued")
    options = parser.parse_args()
    scores, found = recorded(), _earlier(options.results, options.draws)
    rates = found["rates"]
    for looks, count, missed, (shift, gain) in product(LOOKS, CASES, MISSED, ENTRIES):
        kind = f"{shift:+.2f}{' non-inferiority' if gain else ''}{' missed' if missed else ''}"
        name = f"{kind}, n={count}, look {looks}"
        if name not in rates:
            began = time.perf_counter()
            rates[name] = rate(scores, count, looks, options.draws, shift=shift, gain=gain, missed=missed)
            found["seconds"] = round(found["seconds"] + time.perf_counter() - began, 1)
            write_json(options.results, found)
            print(f"{name}: {rates[name]}", flush=True)
    found = {**_summary(rates), **time_promotions(), **found}
    write_json(options.results, found)
    print(json.dumps(found))


def _earlier(path: Path, draws: int) -> dict[str, Any]:
    """The results of an interrupted run with the same number of draws, or empty ones."""
    earlier: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    kept = earlier if earlier.get("draws") == draws else {}
    return {
        "rates": kept.get("rates", {}),
        "draws": draws,
        "seconds": kept.get("seconds", 0.0),
        "cpus": os.cpu_count(),
        "load": os.getloadavg()[0],
        "versions": {name: version(name) for name in ("numpy", "scipy", "mlflow", "torch")},
        "python": platform.python_version(),
    }


def _summary(rates: dict[str, dict[str, float]]) -> dict[str, Any]:
    """The highest rates of false promotions, and the power by number of cases."""
    power = {
        f"power_{shift[1:].replace('.', '')}_look_{looks}": {
            str(n): rates[f"{shift}, n={n}, look {looks}"]["accepted"] for n in CASES
        }
        for shift, looks in product(("+0.02", "+0.05"), LOOKS)
    }
    false = {
        label: {
            key: max(entry[key] for name, entry in rates.items() if name.startswith(shift))
            for key in ("accepted", "primary")
        }
        for label, shift in (("false_promotions", "+0.00"), ("false_worse", "-0.02"))
    }
    return {**false, **power}


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
    config, request, accepted, primary = PromotionConfig(), Request("benchmark", gain), 0, 0
    for number in range(draws):
        first, second = draw(scores, rng, count, missed)
        first[:, 0] += shift
        evidence = evidence_of(first, second, looks)
        with fast_resampling():
            judgement = judge(evidence, config, request)
        if number < CHECKED:
            _require_same(judgement, judge(evidence, config, request))
        assert judgement.over_champion is not None
        accepted += judgement.accepted
        primary += judgement.over_champion.low > (-config.noninferiority_margin if gain else 0.0)
    return {"accepted": accepted / draws, "primary": primary / draws}


@contextmanager
def fast_resampling() -> Iterator[None]:
    """Let the gate take the means of its resamples from a matrix."""
    statistics._resampled_means = lambda cases, seed: _shares(cases.size, seed) @ cases
    try:
        yield
    finally:
        statistics._resampled_means = _product_means


@lru_cache(maxsize=1)
def _shares(cases: int, seed: int) -> np.ndarray:
    """Share of each case in each of the gate's resamples (resample, case): the resampled means of its indicator."""
    return np.column_stack([_product_means(indicator, seed) for indicator in np.eye(cases)])


def _require_same(fast: Judgement, slow: Judgement) -> None:
    assert (fast.accepted, fast.rule, [guard.passed for guard in fast.guards]) == (
        slow.accepted,
        slow.rule,
        [guard.passed for guard in slow.guards],
    )
    for one, other in ((fast.difference, slow.difference), (fast.over_champion, slow.over_champion)):
        assert one is not None
        assert other is not None
        assert np.allclose((one.low, one.high), (other.low, other.high), rtol=0, atol=1e-12)


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
            rollback(registry, log, root / "decisions")
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
