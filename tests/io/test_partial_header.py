"""Headers of volumes of which only the beginning has arrived: never another decision than from the complete file."""

from __future__ import annotations

import gzip
import io
import struct
from collections.abc import Callable

import numpy as np
import pytest

from gtvray.errors import InputError, TooLargeError, VolumeError
from gtvray.io import VolumeHeader, encode_nifti, read_open_header, read_partial_header

from ..serving.hostile import hostile
from .headers import DIM, made_volume, patched
from .mutate import mutated, noise, originals

LIMIT = 64 << 20


def same(one: VolumeHeader, other: VolumeHeader) -> bool:
    rest = [(each.shape, each.dtype, each.is_scaled, each.slope) for each in (one, other)]
    return np.array_equal(one.affine, other.affine) and rest[0] == rest[1]


def decided(read: Callable[[], VolumeHeader | None]) -> VolumeHeader | InputError | None:
    """The header, or the error for which there is none."""
    try:
        return read()
    except InputError as error:
        return error


def require_consistent(content: bytes, count: int) -> str:
    """Compare the decisions from the first `count` bytes and from all; return what the former is."""
    complete = decided(lambda: read_open_header(io.BytesIO(content), "upload", LIMIT))
    found = decided(lambda: read_partial_header(content[:count], len(content), "upload", LIMIT))
    if isinstance(found, InputError):
        assert isinstance(complete, InputError), f"{found} for a file that is accepted"
        # Damage of a gzip stream may lie behind the part that was refused for its content.
        assert (type(found), found.what) == (type(complete), complete.what) or "gzip" in complete.what
        return "refused"
    if found is None:
        return "undecided"
    # Damage behind the header of a compressed file does not show in its beginning.
    assert isinstance(complete, InputError) or same(found, complete)
    return "read"


@pytest.mark.parametrize("original", originals(noise()), ids=lambda each: each.name)
def test_valid_file_is_never_refused_wherever_it_is_cut(original) -> None:
    counts = [*range(0, original.voxels_at, 9), *range(original.voxels_at - 5, original.voxels_at + 5)]
    found = [require_consistent(original.content, count) for count in sorted({*counts, len(original.content)})]
    assert set(found) == {"undecided", "read"}
    assert found[-1] == "read"
    assert found == sorted(found, reverse=True), "undecided until the header is complete"


def test_damaged_files_are_decided_as_if_complete() -> None:
    good, found = originals(noise()), set()
    for number in range(400):
        rng = np.random.default_rng([5, number])
        content = mutated(good[number % len(good)], rng)[1]
        found |= {require_consistent(content, count) for count in (int(rng.integers(1, 800)), 64 << 10)}
    assert found == {"refused", "read", "undecided"}


@pytest.mark.slow
def test_hostile_files_are_decided_as_if_complete() -> None:
    assert {require_consistent(each.content, 64 << 10) for each in hostile(noise())} == {"refused", "read", "undecided"}


@pytest.mark.parametrize("compressed", [False, True])
def test_impossible_claims_are_refused_from_the_header(compressed: bool) -> None:
    def beginning(*sides: int) -> bytes:
        claim = patched(encode_nifti(made_volume(), compress=False), dim=(DIM, struct.pack("<4h", 3, *sides)))
        return gzip.compress(claim) if compressed else claim

    with pytest.raises(TooLargeError, match="volume is too large"):
        read_partial_header(beginning(10_000, 10_000, 10_000), 1 << 28, "upload", LIMIT)
    with pytest.raises(VolumeError, match="truncated"):
        read_partial_header(beginning(300, 300, 300), 10_000, "upload", LIMIT)
    assert read_partial_header(beginning(300, 300, 300), 60_000_000, "upload", LIMIT) is not None
