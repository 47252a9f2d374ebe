"""Mutation fuzzing: valid volume files with seeded damage, each read under memory and time limits.

    python tests/io/mutate.py SEED FIRST COUNT

Input N of a seed is the same in every run, so `SEED N 1` reproduces it. The last line of output is a JSON object:
numbers of accepted and refused inputs by kind of damage; `silent`, the accepted inputs whose damage contradicts
redundant content; `crashed`, the inputs that gave neither a volume nor an InputError.
"""

from __future__ import annotations

import gzip
import json
import resource
import signal
import sys
from collections import Counter
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from scipy.spatial.transform import Rotation

from gtvray.errors import InputError
from gtvray.geometry import Volume
from gtvray.io import decode_volume, encode_nrrd

MEMORY_BYTES = 256 << 20
SECONDS_EACH = 20.0
# Fields without redundancy: a change may alter the values, but not the affine.
NOT_REDUNDANT = {"scl_slope", "scl_inter", "datatype"}
# Required of an accepted file: "never" accepted, "same" volume, same grid ("placed"), or "any" valid volume.
Claim = str


@dataclass(frozen=True)
class Original:
    """A valid file: its bytes, its volume, the offset of the voxels, and whether a checksum covers them."""

    name: str
    content: bytes
    volume: Volume
    voxels_at: int
    summed: bool = False
    header: Any = None


def noise() -> Volume:
    """A small oblique volume."""
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", [10, -20, 165], degrees=True).as_matrix() * (0.9, 1.1, -2.5)
    affine[:3, 3] = -120.5, 33.25, 900
    array = np.random.default_rng(0).integers(-1000, 1000, (7, 6, 5)).astype(np.int16)
    return Volume(array, affine.astype(np.float32).astype(np.float64))


def originals(volume: Volume) -> list[Original]:
    """An int16 volume as NIfTI-1 and NIfTI-2 in both byte orders, plain and gzipped, and as NRRD, raw and gzipped."""
    array, found = volume.array, []
    for kind, order in product((nibabel.Nifti1Image, nibabel.Nifti2Image), "<>"):
        header = kind.header_class(endianness=order)
        header.set_data_dtype(array.dtype.newbyteorder(order))
        image = kind(array, None, header)
        image.set_sform(volume.affine, 1)
        image.set_qform(volume.affine, 1)
        image.header.set_xyzt_units("mm")
        content = bytes(image.to_bytes())
        name = f"{kind.__name__}{order}"
        plain = Original(name, content, volume, len(content) - array.nbytes, header=kind.header_class)
        found += [plain, replace(plain, name=name + "gz", content=gzip.compress(content, mtime=0), summed=True)]
    packed = encode_nrrd(volume)
    start = packed.index(b"\n\n") + 2
    raw = packed[:start].replace(b"encoding: gzip", b"encoding: raw")
    found.append(Original("nrrd", raw + array.tobytes(order="F"), volume, len(raw)))
    found.append(Original("nrrd-gzip", packed, volume, start, summed=True))
    return found


def mutated(original: Original, rng: np.random.Generator) -> tuple[str, bytes, Claim]:
    """Damage a file; returns the kind of damage, the bytes, and the claim that must hold if they are accepted."""
    if original.header is not None and original.summed and rng.random() < 0.5:
        # Damage from before compression, which the checksum does not detect.
        inner = replace(original, content=gzip.decompress(original.content), summed=False)
        kind, content, claim = mutated(inner, rng)
        return f"inner {kind}", gzip.compress(content, 1), claim
    # Header fields are not addressable in a gzip stream.
    has_fields = original.header is None or not original.summed
    kind = str(
        rng.choice(
            ["flip", "cut", "append", "swap", "zero", "delete", "repeat", *["field"] * 3][: 10 if has_fields else 7]
        )
    )
    if kind == "field":
        return kind, *(_nrrd_field(original, rng) if original.header is None else _nifti_field(original, rng))
    content = _damaged(kind, original.content, rng)
    return kind, content, _claim(original, content)


def _damaged(kind: str, content: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(content)
    length = int(rng.integers(1, 40))
    at, other = (int(rng.integers(0, len(content) - 2 * length)) for _ in range(2))
    if kind == "flip":
        for bit in rng.integers(0, 8 * len(content), rng.integers(1, 4)):
            changed[bit // 8] ^= 1 << (bit % 8)
    elif kind == "cut":
        del changed[int(rng.integers(0, len(content))) :]
    elif kind == "append":
        more = int(rng.choice([1, 60, 420, 1 << 20, 8 << 20]))
        changed += bytes(more) if rng.random() < 0.5 else rng.bytes(min(more, 420))
    elif kind == "swap":
        changed[at : at + length], changed[other : other + length] = (
            content[other : other + length],
            content[at : at + length],
        )
    elif kind == "zero":
        changed[at : at + length] = bytes(length)
    elif kind == "delete":
        del changed[at : at + length]
    else:
        changed[at:at] = content[at : at + length]
    return bytes(changed)


def _claim(original: Original, content: bytes) -> Claim:
    same_header = content[: original.voxels_at] == original.content[: original.voxels_at]
    if original.summed and (original.header is not None or same_header):
        # Zeros after a gzip stream are padding, so appended bytes may leave the volume unchanged.
        return "same"
    if len(content) != len(original.content):
        return "never" if original.header is not None or same_header else "any"
    if same_header:
        return "placed"
    if original.header is None:
        return "any"
    at = np.flatnonzero(np.frombuffer(content, np.uint8) != np.frombuffer(original.content, np.uint8))
    fields = {_field_at(original.header, int(offset)) for offset in at}
    if len(fields - {"voxels"}) > 1:
        return "any"
    return "placed" if fields & (NOT_REDUNDANT | {"voxels"}) else "same"


def _field_at(header: Any, offset: int) -> str:
    fields = header.template_dtype.fields
    return next((n for n, (kind, start) in fields.items() if start <= offset < start + kind.itemsize), "voxels")


def _nifti_field(original: Original, rng: np.random.Generator) -> tuple[bytes, Claim]:
    """Replace one number of a random field by a boundary value of its type or by a slightly different one."""
    order = original.name[len("Nifti1Image")]
    dtype = original.header.template_dtype.newbyteorder(order)
    header = np.frombuffer(original.content[: dtype.itemsize], dtype).copy()
    name = str(rng.choice(dtype.names))
    field = header[name].reshape(-1)
    assert np.shares_memory(field, header)
    at = int(rng.integers(field.size))
    if field.dtype.kind in "iu":
        info = np.iinfo(field.dtype)
        old = int(field[at])
        values = [0, 1, 2, 3, 7, 512, old + 1, old - 1, info.min, info.max]
        field[at] = int(np.clip(int(rng.choice(values)), info.min, info.max))
    elif field.dtype.kind == "f":
        with np.errstate(all="ignore"):
            old = float(field[at])
            values = [
                0.0,
                -1.0,
                1.0,
                np.nan,
                np.inf,
                -np.inf,
                1e-30,
                1e30,
                1e200,
                old * 1.005,
                old * 1.5,
                -old,
                old + 50,
            ]
            field[at] = values[int(rng.integers(len(values)))]
    else:
        field[at] = rng.bytes(int(rng.integers(0, field.dtype.itemsize + 1)))
    content = header.tobytes() + original.content[dtype.itemsize :]
    return content, _claim(original, content)


def _nrrd_field(original: Original, rng: np.random.Generator) -> tuple[bytes, Claim]:
    """Delete or duplicate a random header line, or replace a word of it by a boundary value."""
    lines = original.content[: original.voxels_at - 2].split(b"\n")
    at = int(rng.integers(len(lines)))
    name, _, text = lines[at].partition(b": ")
    words = text.split(b" ")
    word = int(rng.integers(len(words)))
    values = [
        b"0",
        b"-1",
        b"3",
        b"4",
        b"1e400",
        b"1e200",
        b"nan",
        b"99999999999",
        b"none",
        b"(0,0,0)",
        b"(1e200,0,1)",
        b"(1,2)",
        b"\xff",
        b"",
        b"%d",
    ]
    choice = int(rng.integers(5))
    if choice == 0:
        del lines[at]
    elif choice == 1:
        lines.insert(at, lines[at])
    else:
        words[word] = values[int(rng.integers(len(values)))]
        lines[at] = name + b": " + b" ".join(words)
    return b"\n".join(lines) + b"\n\n" + original.content[original.voxels_at :], "any"


def broken_claim(claim: Claim, original: Original, content: bytes, volume: Volume) -> str | None:
    """The reason why a file should have been refused, or None."""
    corners = np.array(list(product(*[(0, n - 1) for n in original.volume.shape], (1,)))).T
    apart_mm = np.linalg.norm(((volume.affine - original.volume.affine) @ corners)[:3], axis=0).max()
    placed = volume.shape == original.volume.shape and apart_mm <= 0.5 * min(original.volume.spacing_mm)
    why = None
    if claim == "never":
        why = "accepted although its size is wrong"
    elif not np.isfinite(volume.array).all() or volume.array.nbytes > 1032 * len(content):
        why = "not a valid volume"
    elif claim != "any" and not placed:
        why = f"shape {volume.shape}, {apart_mm:.3g} mm away"
    elif claim == "same" and not np.array_equal(volume.array, original.volume.array):
        why = "different values"
    return why


def run(seed: int, first: int, count: int) -> dict[str, Any]:
    """Read `count` damaged files starting with number `first`."""
    good = originals(noise())
    for original in good:
        assert broken_claim("same", original, original.content, decode_volume(original.content)) is None
    accepted: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    silent, crashed = [], []
    for number in range(first, first + count):
        rng = np.random.default_rng([seed, number])
        original = good[number % len(good)]
        kind, content, claim = mutated(original, rng)
        signal.setitimer(signal.ITIMER_REAL, SECONDS_EACH)
        try:
            volume = decode_volume(content)
        except InputError:
            refused[kind] += 1
        except BaseException as error:  # noqa: BLE001 - any other exception is a finding
            crashed.append([number, original.name, kind, repr(error)])
        else:
            accepted[kind] += 1
            why = broken_claim(claim, original, content, volume)
            if why is not None:
                silent.append([number, original.name, kind, why])
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    return {"accepted": accepted, "refused": refused, "silent": silent, "crashed": crashed}


def _late(signum: int, frame: object) -> None:
    raise TimeoutError(f"not read in {SECONDS_EACH} s")


if __name__ == "__main__":
    signal.signal(signal.SIGALRM, _late)
    run(0, 0, 20)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, used + MEMORY_BYTES))
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    report = run(*map(int, sys.argv[1:]))
    report["grown_mb"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb) / 1024
    sys.stdout.write(json.dumps(report) + "\n")
