"""How sure a model is of a mask: a voxel at a time, and of the case.

The views (members of an ensemble, mirrored patches) answer once more about the mask, each for itself. The mean of their
probabilities gives the entropy of a voxel and the Dice to be expected if probabilities meant what they say; their
differences give how far the views agree. With one view only the first two are known.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gtvray.geometry import Box, Volume
from gtvray.inference.case import CaseJob, largest_component
from gtvray.inference.views import mean_of_views
from gtvray.preprocessing import Prepared, prepare_mask

if TYPE_CHECKING:
    from gtvray.inference.predictor import Predictor


@dataclass(frozen=True)
class Uncertainty:
    """What is known of a mask's reliability.

    Attributes:
        doubt: 0 to 1: one less the expected Dice; with nothing marked, the largest probability there is.
        mean_entropy_bits: mean entropy of the marked voxels; 0 where none is.
        views: answers compared.
        pairwise_dice: mean Dice between the views' masks; None with one view.
        volume_sd_ml: standard deviation of the views' volumes; None with one view.
    """

    doubt: float
    mean_entropy_bits: float
    views: int
    pairwise_dice: float | None
    volume_sd_ml: float | None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def estimate_uncertainty(predictor: Predictor, prepared: Prepared, mask: Volume) -> tuple[Uncertainty, Volume]:
    """Ask every view about the neighbourhood of a mask; about the whole scan if the mask is empty.

    Args:
        predictor: the warm model that made the mask.
        prepared: the scan on the prepared grid.
        mask: on the scan's own grid.

    Returns:
        the case's figures, and the entropy of each voxel in bits (float32, 0 to 1) on the prepared grid of that
        neighbourhood, whose affine places it in the patient.
    """
    near = prepared.cropped(_neighbourhood(predictor, prepared, mask))
    (together, *views), place = _answers(predictor, near), near.hu
    inference = predictor.bundle.inference
    # A voxel that the views see each in their own way is a doubtful one, however sure one of them is.
    mean = np.asarray(np.mean(views, axis=0, dtype=np.float64))
    p = np.clip(mean, 1e-7, 1 - 1e-7)
    entropy = -(p * np.log2(p) + (1 - p) * np.log2(1 - p))
    marked = _marked(together, inference.threshold, inference.keep_largest)
    masks = [_marked(view, inference.threshold, inference.keep_largest) for view in views]
    pairs = [_dice(a, b) for a, b in combinations(masks, 2)]
    volumes_ml = [np.count_nonzero(each) * place.voxel_volume_ml for each in masks]
    found = Uncertainty(
        doubt=_doubt(mean, marked),
        mean_entropy_bits=float(entropy[marked].mean()) if marked.any() else 0.0,
        views=len(views),
        pairwise_dice=float(np.mean(pairs)) if pairs else None,
        volume_sd_ml=float(np.std(volumes_ml)) if pairs else None,
    )
    return found, place.with_array(entropy.astype(np.float32))


def _neighbourhood(predictor: Predictor, prepared: Prepared, mask: Volume) -> Box:
    """The mask with half a patch about it, which is what its voxels' answers hang on."""
    i, j, k = (side // 2 for side in predictor.bundle.patch_ijk)
    box = Box.around(prepare_mask(mask, prepared))
    return box.grown((i, j, k), prepared.hu.shape) if box else Box.whole(prepared.hu.shape)


def _answers(predictor: Predictor, near: Prepared) -> list[NDArray[np.float32]]:
    """Probabilities of the views together, as the mask has them, and of each; all are given the same patches."""
    bundle = predictor.bundle
    # What a localised search decides would differ from view to view.
    inference = bundle.inference.model_copy(update={"mode": "body"})
    jobs = [CaseJob(near, bundle.preprocessing, inference, bundle.patch_ijk) for _ in range(1 + predictor.view_count)]
    while jobs[0].remaining:
        count = min(predictor.batch_size, jobs[0].remaining)
        taken = [[job.take() for _ in range(count)] for job in jobs]
        views = list(predictor.views([patch.channels for patch in taken[0]]))
        for job, patches, answers in zip(jobs, taken, (mean_of_views(views), *views), strict=True):
            for patch, answer in zip(patches, answers, strict=True):
                job.put(patch.number, answer)
    return [job.probability() for job in jobs]


def _marked(probability: NDArray[np.floating[Any]], threshold: float, keep_largest: bool) -> NDArray[np.bool_]:
    marked = np.asarray(probability > threshold)
    return largest_component(marked) if keep_largest else marked


def _doubt(mean: NDArray[np.float64], marked: NDArray[np.bool_]) -> float:
    if not marked.any():
        return float(mean.max())
    return float(1 - 2 * mean[marked].sum() / (mean.sum() + np.count_nonzero(marked)))


def _dice(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    size = np.count_nonzero(a) + np.count_nonzero(b)
    return float(2 * np.count_nonzero(a & b) / size) if size else 1.0
