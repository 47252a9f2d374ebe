"""The prepared-case cache: HU and mask on the prepared grid, compressed in chunks, addressed by content.

An entry's name is the sha256 over the digests of scan and mask, the preprocessing settings and the preprocessing
version, so a changed file or setting never finds a stale entry, and two writers of one entry write the same bytes. An
entry is checked against its checksums when it is requested, and prepared again if it is damaged.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
from numpy.typing import NDArray

from gtvray.config import CacheConfig, PreprocessingConfig
from gtvray.data.cache.digests import DigestMemo
from gtvray.data.cache.prepared import MIRRORED, CachedCase
from gtvray.data.cache.store import META, EntryStore, seal
from gtvray.datasets.layouts.cases import Case, read_label_with_note
from gtvray.geometry import Box
from gtvray.io import atomic_dir, read_json, read_volume
from gtvray.preprocessing import PREPROCESSING_VERSION, cut_off_share, prepare, prepare_mask

# A read decompresses the blocks it touches. blosc2 keeps an index of chunks, and writing many small ones is slow:
# chunks of a quarter of a million voxels take a third of the time of 32 x 32 x 32.
_CHUNK, _BLOCK = 64, 16
_FOREGROUND_SAMPLES = 4096


class CaseCache:
    """A folder of prepared cases, bounded by `cache.max_gb`.

    Entries that this process has requested are not evicted before it ends.

    Args:
        folder: for the entries; created when needed.
        preprocessing: its settings.
        config: settings of the cache.

    Attributes:
        made: entries prepared.
        found: entries that were in the cache.
        evicted: entries removed to free space.
    """

    def __init__(self, folder: Path, preprocessing: PreprocessingConfig, config: CacheConfig) -> None:
        self._preprocessing = preprocessing
        self._config = config
        self._store = EntryStore(folder, int(config.max_gb * 1e9))
        self._digests = DigestMemo(folder / ".digests")
        self._counting = threading.Lock()
        self.made = self.found = self.evicted = 0

    @property
    def size_bytes(self) -> int:
        """Size of all entries."""
        return self._store.size_bytes()

    def prepare_all(
        self, cases: Sequence[Case], report: Callable[[int, int], None] | None = None, workers: int = 2
    ) -> list[CachedCase]:
        """Prepare the cases that are not in the cache, several at a time.

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
        """Prepare one case, or find it in the cache.

        Raises:
            DataError: the scan or its mask is not usable.
            ResourceError: the disk is full, or the entries in use exceed `cache.max_gb`.
        """
        key, digests = self._key(case)
        folder = self._store.path(key)
        self._store.lease(key)
        meta, evicted = self._store.find(key), 0
        made = meta is None
        if meta is None:
            with atomic_dir(folder, complete_with=META) as temporary:
                self._write(case, digests, temporary)
            meta = read_json(folder / META)
            evicted = self._store.make_space()
        with self._counting:
            self.made += made
            self.found += not made
            self.evicted += evicted
        return CachedCase(case.case_id, folder, meta)

    def _key(self, case: Case) -> tuple[str, dict[str, str]]:
        sha256 = self._digests.sha256
        digests = {"image_sha256": sha256(case.image), "label_sha256": sha256(case.label) if case.label else ""}
        # Windows are applied after the cache and do not change it. Without `mirrored`, keys are those of entries made
        # before that setting existed.
        left_out = {"windows_hu"} if self._preprocessing.mirrored else {"windows_hu", "mirrored"}
        settings = self._preprocessing.model_dump(mode="json", exclude=left_out)
        text = json.dumps([digests, settings, PREPROCESSING_VERSION], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32], digests

    def _write(self, case: Case, digests: dict[str, str], folder: Path) -> None:
        image = read_volume(case.image)
        level = self._config.codec_level
        # One thread: reading the mask, then writing, beside the work of this one.
        with ThreadPoolExecutor(1) as beside:
            reading = beside.submit(read_label_with_note, case, image)
            prepared = prepare(image, self._preprocessing, case.image)
            writing = beside.submit(_write_chunks, prepared.hu.array, folder / "hu.b2nd", level)
            label, rounded = reading.result()
            mask = prepare_mask(label, prepared)
            _write_chunks(mask, folder / "mask.b2nd", level)
            if prepared.mirrored is not None:
                _write_chunks(prepared.mirrored, folder / MIRRORED, level)
            np.save(folder / "foreground.npy", _sample_foreground(mask))
            writing.result()
        notes, cut = list(prepared.notes), cut_off_share(label, prepared)
        if rounded:
            notes.append(f"mask: {rounded}")
        if cut:
            notes.append(f"{cut:.2%} of the tumour lie outside the body's box and were cut away")
        meta = {
            **digests,
            "shape": list(mask.shape),
            "affine": prepared.hu.affine.tolist(),
            "source_shape": list(image.shape),
            "source_spacing_mm": list(image.spacing_mm),
            "tumour_ml": float(np.count_nonzero(label.array)) * label.voxel_volume_ml,
            "mirrored": prepared.mirrored is not None,
            "notes": notes,
        }
        seal(folder, meta)


def _write_chunks(array: NDArray[Any], path: Path, level: int) -> None:
    chunks = tuple(min(_CHUNK, size) for size in array.shape)
    packed = blosc2.zeros(
        array.shape,
        dtype=array.dtype,
        chunks=chunks,
        blocks=tuple(min(_BLOCK, size) for size in chunks),
        # Decompresses in half of zstd's time: patches are read far more often than written. LZ4HC's files are a twelfth
        # smaller and take three times as long to write.
        cparams={"codec": blosc2.Codec.LZ4, "clevel": level, "nthreads": 1},
    )
    # A column of chunks at a time: the array may be in Fortran order, and copying all of it at once is slow.
    for i in range(0, array.shape[0], _CHUNK):
        for j in range(0, array.shape[1], _CHUNK):
            column = (slice(i, i + _CHUNK), slice(j, j + _CHUNK))
            # Most of a mask is empty: the zeros that are there already.
            part = array[column]
            if part[0, 0, 0] or part.any():
                packed[column] = np.ascontiguousarray(part)
    # Written here because blosc2 itself does not report a full disk.
    path.write_bytes(packed.to_cframe())


def _sample_foreground(mask: NDArray[np.uint8]) -> NDArray[np.int32]:
    box = Box.around(mask)
    if box is None:
        return np.empty((0, 3), np.int32)
    voxels = (np.argwhere(mask[box.slices]) + box.start_ijk).astype(np.int32)
    if len(voxels) > _FOREGROUND_SAMPLES:
        voxels = voxels[np.linspace(0, len(voxels) - 1, _FOREGROUND_SAMPLES).astype(int)]
    return voxels
