"""The prepared-case cache: HU and mask on the prepared grid, compressed in chunks, found by content.

An entry's name is the sha256 over the digests of scan and mask, the preprocessing settings and the preprocessing
version, so a changed file or setting never meets a stale entry, and two writers of one entry write the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
from numpy.typing import NDArray

from gtvray.config import CacheConfig, PreprocessingConfig
from gtvray.data.layouts import Case, read_label
from gtvray.geometry import Box
from gtvray.io import atomic_dir, read_json, read_volume, sha256_of
from gtvray.preprocessing import PREPROCESSING_VERSION, prepare, prepare_mask

_CHUNK = 32
_FOREGROUND_SAMPLES = 4096


@dataclass(frozen=True)
class CachedCase:
    """A prepared case on disk; reading a box inflates only the chunks it touches."""

    case_id: str
    folder: Path
    meta: dict[str, Any]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Size on the prepared grid."""
        i, j, k = self.meta["shape"]
        return i, j, k

    def read(self, box: Box) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
        """HU and mask in a box of the prepared grid."""
        hu = blosc2.open(str(self.folder / "hu.b2nd"), mode="r")[box.slices]
        mask = blosc2.open(str(self.folder / "mask.b2nd"), mode="r")[box.slices]
        return np.asarray(hu), np.asarray(mask)

    def foreground_ijk(self) -> NDArray[np.int32]:
        """Tumour voxels, at most 4,096 of them drawn evenly, shape (n, 3)."""
        return np.asarray(np.load(self.folder / "foreground.npy"))


class CaseCache:
    """A folder of prepared cases.

    Args:
        folder: where entries live; made when needed.
        preprocessing: settings of the path.
        config: settings of the cache.
    """

    def __init__(self, folder: Path, preprocessing: PreprocessingConfig, config: CacheConfig) -> None:
        self._folder = folder
        self._preprocessing = preprocessing
        self._config = config

    def prepare_all(
        self, cases: Sequence[Case], report: Callable[[int, int], None] | None = None, workers: int = 2
    ) -> list[CachedCase]:
        """Prepare what is not there yet, several cases at a time.

        Raises:
            as `prepare`.
        """
        cached = []
        with ThreadPoolExecutor(workers) as pool:
            for case in pool.map(self.prepare, cases):
                cached.append(case)
                if report is not None:
                    report(len(cached), len(cases))
        return cached

    def prepare(self, case: Case) -> CachedCase:
        """Prepare one case, or find it prepared.

        Raises:
            DataError: the scan or its mask is not usable.
            ResourceError: the disk is full.
        """
        key, digests = self._key(case)
        folder = self._folder / key
        if not (folder / "meta.json").exists():
            with atomic_dir(folder, complete_with="meta.json") as temporary:
                self._write(case, digests, temporary)
        return CachedCase(case.case_id, folder, read_json(folder / "meta.json"))

    def _key(self, case: Case) -> tuple[str, dict[str, str]]:
        digests = {"image_sha256": sha256_of(case.image), "label_sha256": sha256_of(case.label) if case.label else ""}
        # Windows are applied after the cache and do not change it.
        settings = self._preprocessing.model_dump(mode="json", exclude={"windows_hu"})
        text = json.dumps([digests, settings, PREPROCESSING_VERSION], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32], digests

    def _write(self, case: Case, digests: dict[str, str], folder: Path) -> None:
        image = read_volume(case.image)
        label = read_label(case, image)
        prepared = prepare(image, self._preprocessing, case.image)
        mask = prepare_mask(label, prepared)
        self._store(prepared.hu.array, folder / "hu.b2nd")
        self._store(mask, folder / "mask.b2nd")
        np.save(folder / "foreground.npy", _sample_foreground(mask))
        meta = {
            **digests,
            "shape": list(mask.shape),
            "affine": prepared.hu.affine.tolist(),
            "source_shape": list(image.shape),
            "source_spacing_mm": list(image.spacing_mm),
            "tumour_ml": float(label.array.sum()) * label.voxel_volume_ml,
        }
        (folder / "meta.json").write_text(json.dumps(meta))

    def _store(self, array: NDArray[Any], path: Path) -> None:
        chunks = tuple(min(_CHUNK, size) for size in array.shape)
        packed = blosc2.asarray(
            np.ascontiguousarray(array),
            chunks=chunks,
            cparams={"codec": blosc2.Codec.ZSTD, "clevel": self._config.codec_level, "nthreads": 1},
        )
        # Written by us: blosc2 itself does not say that a disk is full.
        path.write_bytes(packed.to_cframe())


def _sample_foreground(mask: NDArray[np.uint8]) -> NDArray[np.int32]:
    voxels = np.argwhere(mask).astype(np.int32)
    if len(voxels) > _FOREGROUND_SAMPLES:
        voxels = voxels[np.linspace(0, len(voxels) - 1, _FOREGROUND_SAMPLES).astype(int)]
    return voxels
