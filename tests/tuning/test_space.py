"""From the schema's space to Ray Tune's and back."""

from __future__ import annotations

from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler

from gtvray.config import Choice, Config, Range, SweepConfig, with_dotted
from gtvray.tuning import decode, tune_space
from gtvray.tuning.space import build_scheduler, build_searcher, encode

SPACE: dict[str, Range | Choice] = {
    "optimizer.lr": Range(low=1e-4, high=1e-2, log=True),
    "training.foreground_share": Range(low=0.2, high=0.8),
    "training.batch_size": Range(low=1, high=3, integer=True),
    "training.steps_per_epoch": Range(low=1, high=100, integer=True, log=True),
    "training.patch_ijk": Choice(choice=[[16, 16, 16], [32, 32, 16]]),
    "network.features": Choice(choice=[None, [4, 8, 8]]),
    "network.deep_supervision": Choice(choice=[True, False]),
    "training.cpus_per_worker": Choice(choice=[1, 2]),
    "loss.kind": Choice(choice=["dice_ce", "dice_topk"]),
}
POINT: dict[str, Any] = {
    "optimizer.lr": 3e-4,
    "training.foreground_share": 0.5,
    "training.batch_size": 2,
    "training.steps_per_epoch": 10,
    "training.patch_ijk": [32, 32, 16],
    "network.features": None,
    "network.deep_supervision": False,
    "training.cpus_per_worker": 2,
    "loss.kind": "dice_topk",
}


def test_point_round_trip() -> None:
    carried = encode(POINT, SPACE)
    assert all(isinstance(value, (str, int, float)) for value in carried.values()), "Optuna takes scalars only"
    back = decode({**carried, "of another's": 1}, SPACE)
    assert back == POINT
    assert {key: type(value) for key, value in back.items()} == {key: type(value) for key, value in POINT.items()}


def test_every_sample_is_a_valid_config() -> None:
    domains, drawn = tune_space(SPACE), []
    for _ in range(200):
        point = decode({key: domain.sample() for key, domain in domains.items()}, SPACE)
        assert all(SPACE[key].holds(value) for key, value in point.items())
        with_dotted(Config(), {**point, "training.steps_per_epoch": int(point["training.steps_per_epoch"])})
        drawn.append(point)
    assert {point["training.batch_size"] for point in drawn} == {1, 2, 3}, "both ends of an integer range are drawn"
    assert {str(point["network.features"]) for point in drawn} == {"None", "[4, 8, 8]"}
    assert sum(point["optimizer.lr"] < 1e-3 for point in drawn) > 60, "half of a log range lies below its middle"


def test_start_points_come_first_and_the_seed_decides_the_rest() -> None:
    def proposals(seed: int) -> list[dict[str, Any]]:
        searcher = build_searcher(SweepConfig(space=SPACE, trials=4, seed=seed, start=[POINT]), 1)
        searcher.set_search_properties("selection_dsc", "max", tune_space(SPACE))
        return [decode(searcher.suggest(f"t{n}"), SPACE) for n in range(4)]

    first = proposals(3)
    assert first[0] == POINT
    assert all(SPACE[key].holds(value) for point in first for key, value in point.items())
    assert first == proposals(3)
    assert first[1:] != proposals(4)[1:]


def test_scheduler_is_bounded_by_the_training(config: Config) -> None:
    sweep = SweepConfig(space={"optimizer.lr": SPACE["optimizer.lr"]})
    assert isinstance(build_scheduler(sweep, config), AsyncHyperBandScheduler)
    none = sweep.model_copy(update={"scheduler": sweep.scheduler.model_copy(update={"kind": "none"})})
    assert isinstance(build_scheduler(none, config), FIFOScheduler)
