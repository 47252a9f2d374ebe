"""The study of `inference.py`: cases and their copies, what localising them costs, and what a model knows of itself."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage, stats
from scipy.spatial.transform import Rotation

from gtvray.geometry import Box, Volume
from gtvray.io import read_volume
from gtvray.preprocessing import AIR_HU

AS_IT_IS = "as it is"
# About the axes of left-right, front-back and head-feet: a head laid otherwise on the table.
TURN_DEG = (8.0, -6.0, 12.0)


def bundle_of(folder: Path, **inference: Any) -> Any:
    """The bundle with other inference settings."""
    from gtvray.models import Bundle

    bundle = Bundle.load(folder)
    return replace(bundle, inference=bundle.inference.model_copy(update=inference))


def study_cases(given: argparse.Namespace) -> dict[str, Any]:
    """Localised and body against exhaustive on cases and their copies."""
    from gtvray.data import index_dataset, read_label
    from gtvray.evaluation import dice
    from gtvray.inference import Predictor, estimate_uncertainty

    whole, near, body, asked = (
        Predictor(bundle_of(given.model, mode=mode, flips=flips), threads=given.threads)
        for mode, flips in (("exhaustive", ()), ("localised", ()), ("body", ()), ("body", (0,)))
    )
    rows = []
    for case in index_dataset(given.scan).cases[: given.most]:
        scan = read_volume(case.image)
        for kind, (copy, label) in copies(scan, read_label(case, scan)).items():
            job = near.begin(copy, mask_only=True)
            near.run(job)
            masks = whole.predict(copy), job.finish(), body.predict(copy)
            sure = estimate_uncertainty(asked, job.prepared, masks[2])[0] if kind == AS_IT_IS else None
            rows.append(
                {
                    "case": case.case_id,
                    "copy": kind,
                    "dsc": [dice(label.array > 0, mask.array > 0) for mask in masks],
                    "missed": tumours_touched(label, masks[0]) - tumours_touched(label, masks[1]),
                    "fallback": job.coverage().fallback,
                    "patches": job.patches,
                    "doubt": sure and sure.doubt,
                    "views_dice": sure and sure.pairwise_dice,
                }
            )
    return {"rows": rows}


def copies(scan: Volume, label: Volume) -> dict[str, tuple[Volume, Volume]]:
    """The case, and what may become of it on its way to us."""
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
    }


def rotated(volume: Volume, outside: float, *, order: int) -> Volume:
    """The volume turned by `TURN_DEG` about its middle and resampled on the same grid."""
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
    """Components of the label that a mask touches."""
    import cc3d

    parts = cc3d.connected_components(np.ascontiguousarray(label.array > 0), connectivity=26)
    return len(set(np.unique(parts[mask.array > 0]).tolist()) - {0})


def study_figures(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What localising costs in quality, and how much of it so many cases could have hidden."""
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
        **doubt_figures([row for row in rows if row["copy"] == AS_IT_IS]),
        "cases": len(cases),
        "copies": len(rows) - len(cases),
        "fallbacks": sum(row["fallback"] is not None for row in rows),
    }


def doubt_figures(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Spearman's correlation over cases of DSC in mode `body` with what is known without the truth."""
    found = {}
    for name in ("doubt", "views_dice"):
        told, dsc = [row[name] for row in rows], [row["dsc"][2] for row in rows]
        found[f"rank_correlation_{name}"] = round(float(stats.spearmanr(told, dsc).statistic), 3)
    return found
