"""Uncertainty of a mask, per voxel and per case.

The views (members of an ensemble, mirrored patches) are run again around the mask, and kept apart. The mean of their
probabilities gives the entropy of each voxel and the Dice expected if probabilities are calibrated; their differences
give the agreement between views. With one view there is no agreement to report.

The endpoint runs nothing again: it estimates the same two values from the probabilities that made the mask.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gtvray.geometry import Box, Volume, largest_component
from gtvray.geometry.affine import Affine
from gtvray.inference.aggregate import LogitAccumulator, mean_of_views
from gtvray.inference.patches import PatchIterator, ScanPatches
from gtvray.preprocessing import Prepared, prepare_mask

if TYPE_CHECKING:
    from gtvray.inference.predictor import Predictor


@dataclass(frozen=True)
class Uncertainty:
    """Uncertainty of a case.

    Attributes:
        expected_dice_loss: 0 to 1: one minus the expected Dice; for an empty mask, the highest probability.
        mean_entropy_bits: mean entropy of the marked voxels; 0 for an empty mask.
        views: number of views compared.
        pairwise_dice: mean Dice between the views' masks; None with one view.
        volume_sd_ml: standard deviation of the views' volumes; None with one view.
    """

    expected_dice_loss: float
    mean_entropy_bits: float
    views: int
    pairwise_dice: float | None
    volume_sd_ml: float | None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class MaskUncertainty:
    """Uncertainty of a mask by the probabilities that made it.

    Attributes:
        expected_dice_loss: as in `Uncertainty`, with the mean over the views' logits in place of the mean over their
            probabilities; None if no patch was run that shaped the mask.
        mean_entropy_bits: as in `Uncertainty`.
    """

    expected_dice_loss: float | None
    mean_entropy_bits: float


def uncertainty_of_mask(
    blocks: Iterable[tuple[Box, NDArray[np.float32]]],
    highest: float | None,
    threshold: float,
    mask: Volume,
    *,
    among: Affine | None = None,
) -> MaskUncertainty:
    """Estimate the uncertainty of a mask, block by block.

    Args:
        blocks: probabilities (i, j, k) of the boxes of the prepared grid at and around the mask.
        highest: the largest probability; None if there are none.
        threshold: a voxel whose probability exceeds it is marked.
        mask: on the scan's own grid.
        among: affine of the prepared grid, to count only marked voxels where the mask is; None counts all.
    """
    if not mask.array.any():
        return MaskUncertainty(highest, 0.0)
    total = marked_total = entropy_bits = 0.0
    count = 0
    for box, probability in blocks:
        total += float(probability.sum(dtype=np.float64))
        marked = probability > threshold
        if among is not None and marked.any():
            marked[marked] = _in_mask(mask, among, np.argwhere(marked) + box.start_ijk)
        p = probability[marked].astype(np.float64)
        marked_total, count = marked_total + float(p.sum()), count + len(p)
        entropy_bits += float(_entropy_bits(p).sum())
    if not count:
        return MaskUncertainty(highest, 0.0)
    return MaskUncertainty(1 - 2 * marked_total / (total + count), entropy_bits / count)


def _in_mask(mask: Volume, affine: Affine, voxels_ijk: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which voxels of another grid have their nearest voxel of the mask's grid in the mask."""
    to_mask = np.linalg.inv(mask.affine) @ affine
    nearest = np.rint(voxels_ijk @ to_mask[:3, :3].T + to_mask[:3, 3]).astype(int)
    nearest = np.clip(nearest, 0, np.array(mask.shape) - 1)
    return np.asarray(mask.array[tuple(nearest.T)] > 0)


def estimate_uncertainty(predictor: Predictor, prepared: Prepared, mask: Volume) -> tuple[Uncertainty, Volume]:
    """Run every view around a mask; on the full scan if the mask is empty.

    Args:
        predictor: the model that made the mask.
        prepared: the scan on the prepared grid.
        mask: on the scan's own grid.

    Returns:
        the uncertainty of the case, and the entropy of each voxel in bits (float32, 0 to 1) on the part of the prepared
        grid that was run, with its affine.
    """
    near = prepared.cropped(_neighbourhood(predictor, prepared, mask))
    combined, *views = _probabilities(predictor, near)
    inference = predictor.bundle.inference
    # The mean of probabilities, not of logits: a voxel on which views disagree is uncertain however confident one is.
    mean = np.asarray(np.mean(views, axis=0, dtype=np.float64))
    entropy = _entropy_bits(mean)
    marked = _marked(combined, inference.threshold, inference.keep_largest)
    masks = [_marked(view, inference.threshold, inference.keep_largest) for view in views]
    pairs = [_dice(a, b) for a, b in combinations(masks, 2)]
    volumes_ml = [np.count_nonzero(each) * near.hu.voxel_volume_ml for each in masks]
    found = Uncertainty(
        expected_dice_loss=_expected_dice_loss(mean, marked),
        mean_entropy_bits=float(entropy[marked].mean()) if marked.any() else 0.0,
        views=len(views),
        pairwise_dice=float(np.mean(pairs)) if pairs else None,
        volume_sd_ml=float(np.std(volumes_ml)) if pairs else None,
    )
    return found, near.hu.with_array(entropy.astype(np.float32))


def _neighbourhood(predictor: Predictor, prepared: Prepared, mask: Volume) -> Box:
    """The box of the mask and half a patch around it, on which the logits of its voxels depend."""
    i, j, k = (side // 2 for side in predictor.bundle.patch_ijk)
    box = Box.around(prepare_mask(mask, prepared))
    return box.grown((i, j, k), prepared.hu.shape) if box else Box.whole(prepared.hu.shape)


def _probabilities(predictor: Predictor, near: Prepared) -> list[NDArray[np.float32]]:
    """Probabilities (i, j, k) of all views combined, as in the mask, and of each view; all run the same patches."""
    bundle = predictor.bundle
    # The decisions of a localised search would differ between views.
    inference = bundle.inference.model_copy(update={"mode": "body"})
    patches = ScanPatches(near, bundle.preprocessing, inference, bundle.patch_ijk)
    iterator, numbers = PatchIterator(patches), patches.on_body()
    iterator.add(numbers)
    accumulators = [
        LogitAccumulator(patches.grid, numbers, patches.weights, inference.threshold)
        for _ in range(1 + predictor.view_count)
    ]
    while iterator.remaining:
        taken = [iterator.take() for _ in range(min(predictor.batch_size, iterator.remaining))]
        in_grid = [iterator.answer(patch.number) for patch in taken]
        views = list(predictor.views([patch.channels for patch in taken]))
        for accumulator, logits in zip(accumulators, (mean_of_views(views), *views), strict=True):
            for number, of_patch in zip(in_grid, logits, strict=True):
                accumulator.add(number, of_patch)
    return [accumulator.read(patches.inner) for accumulator in accumulators]


def _marked(probability: NDArray[np.floating[Any]], threshold: float, keep_largest: bool) -> NDArray[np.bool_]:
    marked = np.asarray(probability > threshold)
    return largest_component(marked) if keep_largest else marked


def _expected_dice_loss(mean: NDArray[np.float64], marked: NDArray[np.bool_]) -> float:
    if not marked.any():
        return float(mean.max())
    return float(1 - 2 * mean[marked].sum() / (mean.sum() + np.count_nonzero(marked)))


def _entropy_bits(probability: NDArray[np.float64]) -> NDArray[np.float64]:
    p = np.clip(probability, 1e-7, 1 - 1e-7)
    return np.asarray(-(p * np.log2(p) + (1 - p) * np.log2(1 - p)))


def _dice(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    size = np.count_nonzero(a) + np.count_nonzero(b)
    return float(2 * np.count_nonzero(a & b) / size) if size else 1.0
