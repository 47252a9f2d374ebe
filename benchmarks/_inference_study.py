"""The study of `inference.py`: accuracy of localised inference on cases and copies, and quality of uncertainty."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, stats
from scipy.spatial.transform import Rotation

from gtvray.geometry import Box, Volume
from gtvray.io import read_volume
from gtvray.preprocessing import AIR_HU

AS_IT_IS, NOISY = "as it is", "noisy"
# Standard deviation of white noise that hides soft-tissue contrast, but neither bone nor air.
NOISE_HU = 400.0
# Angles about the left-right, front-back and head-feet axes: a differently positioned head.
TURN_DEG = (8.0, -6.0, 12.0)


def bundle_of(folder: Path, **inference: Any) -> Any:
    """Return the bundle with other inference settings."""
    from gtvray.models import Bundle

    bundle = Bundle.load(folder)
    return replace(bundle, inference=bundle.inference.model_copy(update=inference))


def study_cases(given: argparse.Namespace) -> dict[str, Any]:
    """Compare localised and body with exhaustive on cases and their copies."""
    from gtvray.datasets import index_dataset, read_label
    from gtvray.evaluation import dice
    from gtvray.inference import Predictor

    whole, near, body, asked = (
        Predictor(bundle_of(given.model, mode=mode, flips=flips), threads=given.threads)
        for mode, flips in (("exhaustive", ()), ("localised", ()), ("body", ()), ("body", (0,)))
    )
    rows = []
    for number, case in enumerate(index_dataset(given.scan).cases[: given.most]):
        scan = read_volume(case.image)
        label = read_label(case, scan)
        looked = copies(scan, label) if number < given.copied else {AS_IT_IS: (scan, label)}
        for kind, (copy, truth) in looked.items():
            job = near.begin(copy, mask_only=True)
            near.run(job)
            masks = whole.predict(copy), job.mask(), body.predict(copy)
            rows.append(
                {
                    "case": case.case_id,
                    "copy": kind,
                    "dsc": [dice(truth.array > 0, mask.array > 0) for mask in masks],
                    "missed": tumours_touched(truth, masks[0]) - tumours_touched(truth, masks[1]),
                    "fallback": job.coverage().fallback,
                    "patches": job.patches,
                    **(certainty(asked, job, masks[2], truth) if kind in (AS_IT_IS, NOISY) else {}),
                }
            )
    return {"rows": rows}


def certainty(asked: Any, job: Any, mask: Volume, truth: Volume) -> dict[str, float | None]:
    """Measure `--uncertainty` in mode `body`, and whether wrong voxels are the uncertain ones."""
    from gtvray.inference import estimate_uncertainty
    from gtvray.preprocessing import prepare_mask

    sure, entropy = estimate_uncertainty(asked, job.prepared, mask)
    marked, right = (
        job.prepared.hu.with_array(prepare_mask(of, job.prepared)).placed_on(entropy, 0).array > 0
        for of in (mask, truth)
    )
    body = job.prepared.hu.placed_on(entropy, AIR_HU).array > asked.bundle.preprocessing.body_threshold_hu
    return {
        "doubt": sure.expected_dice_loss,
        "views_dice": sure.pairwise_dice,
        # Air is never uncertain and never wrong, so it would inflate the result.
        "auroc_entropy": auroc(entropy.array[body], (marked != right)[body]),
        "auroc_entropy_marked": auroc(entropy.array[marked], ~right[marked]),
    }


def auroc(values: NDArray[np.float32], wrong: NDArray[np.bool_]) -> float | None:
    """Probability that a wrong voxel has a larger value than a correct one; None without either."""
    exact = values.astype(np.float64)
    bad, good = exact[wrong], exact[~wrong]
    return float(stats.mannwhitneyu(bad, good).statistic / (bad.size * good.size)) if bad.size and good.size else None


def copies(scan: Volume, label: Volume) -> dict[str, tuple[Volume, Volume]]:
    """Return the case and altered copies that occur in practice."""
    n = scan.shape
    wide = Box((-20, -9, -4), (n[0] + 5, n[1] + 30, n[2] + 11))
    part = Box((n[0] // 8, 0, n[2] // 6), (n[0], n[1] - n[1] // 10, n[2]))
    pair = (scan, label)
    padded = (scan.padded(wide, AIR_HU), label.padded(wide, 0))
    cropped = (scan.cropped(part), label.cropped(part))
    return {
        AS_IT_IS: pair,
        "padded": padded,
        "cropped": cropped,
        "mirrored": tuple_of(volume.with_array(volume.array[::-1]) for volume in pair),
        "other axes": tuple_of(volume.reoriented("IPR") for volume in pair),
        "rotated": (rotated(scan, AIR_HU, order=1), rotated(label, 0, order=0)),
        NOISY: (noisy(scan), label),
    }


def noisy(scan: Volume) -> Volume:
    """Add reproducible white noise to a scan, within 12 bits."""
    noise = np.random.default_rng(0).normal(0, NOISE_HU, scan.shape)
    return scan.with_array(np.clip(scan.array + noise, AIR_HU, 3071).astype(scan.array.dtype))


def rotated(volume: Volume, outside: float, *, order: int) -> Volume:
    """Rotate a volume by `TURN_DEG` about its centre, resampled on the same grid."""
    spacing = np.array(volume.spacing_mm)
    turn = Rotation.from_euler("xyz", TURN_DEG, degrees=True).as_matrix() * spacing / spacing[:, None]
    middle = (np.array(volume.shape) - 1) / 2
    turned = ndimage.affine_transform(
        volume.array, turn, middle - turn @ middle, order=order, mode="constant", cval=outside
    )
    return volume.with_array(turned)


def tuple_of(volumes: Any) -> tuple[Volume, Volume]:
    """Scan and label."""
    scan, label = volumes
    return scan, label


def tumours_touched(label: Volume, mask: Volume) -> int:
    """Return the number of components of the label that a mask touches."""
    import cc3d

    parts = cc3d.connected_components(np.ascontiguousarray(label.array > 0), connectivity=26)
    return len(set(np.unique(parts[mask.array > 0]).tolist()) - {0})


def study_figures(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Loss of quality by localised inference, with the upper bound that this number of cases allows."""
    cases = {row["case"] for row in rows}
    missed = {row["case"] for row in rows if row["missed"] > 0 and row["copy"] == AS_IT_IS}
    bound = stats.beta.ppf(0.95, len(missed) + 1, len(cases) - len(missed)) if len(missed) < len(cases) else 1.0
    return {
        "worst_case_drop": round(max(row["dsc"][0] - row["dsc"][1] for row in rows), 4),
        "worst_case_drop_body": round(max(row["dsc"][0] - row["dsc"][2] for row in rows), 4),
        "mean_dsc": dict(
            zip(
                ("exhaustive", "localised", "body"),
                np.mean([row["dsc"] for row in rows], 0).round(4).tolist(),
                strict=True,
            )
        ),
        "missed": sum(max(0, row["missed"]) for row in rows),
        "miss_rate_below": round(float(bound), 4),
        **doubt_figures(rows),
        "cases": len(cases),
        "copies": len(rows) - len(cases),
        "fallbacks": sum(row["fallback"] is not None for row in rows),
    }


def doubt_figures(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Relation of uncertainty and DSC in mode `body`: across cases, across voxels, and with noise."""
    plain, noise = ({row["case"]: row for row in rows if row["copy"] == copy} for copy in (AS_IT_IS, NOISY))
    found: dict[str, Any] = {}
    for name in ("doubt", "views_dice"):
        told, dsc = [row[name] for row in plain.values()], [row["dsc"][2] for row in plain.values()]
        found[f"rank_correlation_{name}"] = round(float(stats.spearmanr(told, dsc).statistic), 3)
    for name in ("auroc_entropy", "auroc_entropy_marked"):
        known = [row[name] for row in plain.values() if row[name] is not None]
        found[name] = round(float(np.mean(known)), 3) if known else None
    pairs = [(plain[case], row) for case, row in noise.items()]
    if pairs:
        scores = np.array([[row["dsc"][2] for row in pair] for pair in pairs])
        doubt = np.array([[row["doubt"] for row in pair] for pair in pairs])
        found["noise"] = {
            "cases": len(pairs),
            "dsc_falls": int((scores[:, 1] < scores[:, 0]).sum()),
            "doubt_rises": int((doubt[:, 1] > doubt[:, 0]).sum()),
            "mean_dsc": scores.mean(0).round(4).tolist(),
            "mean_doubt": doubt.mean(0).round(4).tolist(),
        }
    return found
