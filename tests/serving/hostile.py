"""Bodies for an endpoint: volumes with seeded damage, and files crafted to be expensive or misread."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from gtvray.geometry import Volume
from gtvray.io import encode_nifti

from ..io.headers import DATATYPE, DIM, PIXDIM, SLOPE, SROW, VOX_OFFSET, patched
from ..io.mutate import Claim, Original, mutated, originals

_NRRD = (
    "NRRD0004\ntype: {type}\ndimension: 3\nspace: left-posterior-superior\nsizes: {sizes}\nendian: little\n"
    "space directions: {directions}\nencoding: {encoding}\nspace origin: (0,0,0)\n{more}\n"
)


@dataclass(frozen=True)
class Attack:
    """A body.

    Attributes:
        name: for reports.
        content: the bytes.
        claim: as in `tests/io/mutate.py`.
        original: file of which the body is a damaged copy; None for others.
    """

    name: str
    content: bytes
    claim: Claim = "any"
    original: Original | None = None


def coarse(scan: Volume, step: int) -> Volume:
    """Every `step`-th voxel of a scan, as if they were neighbours, so that a body costs milliseconds."""
    array = np.ascontiguousarray(scan.array[::step, ::step, ::step]).astype(np.int16)
    return Volume(array, scan.affine.astype(np.float32).astype(np.float64))


def attacks(scans: list[Volume], seed: int, count: int) -> Iterator[Attack]:
    """Yield `count` bodies, reproducible by their arguments; one in forty is crafted, the others are damaged scans."""
    good = [original for scan in scans for original in originals(scan)]
    made = hostile(scans[0])
    for number in range(count):
        if number % 40 == 0:
            yield made[number // 40 % len(made)]
            continue
        rng = np.random.default_rng([seed, number])
        original = good[number % len(good)]
        kind, content, claim = mutated(original, rng)
        yield Attack(f"{number} {original.name} {kind}", content, claim, original)


def hostile(scan: Volume) -> list[Attack]:
    """Return crafted files that random damage would not produce."""
    plain = encode_nifti(scan, compress=False)
    header, voxels = plain[:352], plain[352:]
    many = (1 << 20) * b"\0"
    empty_member = gzip.compress(b"", mtime=0)

    def changed(name: str, compress: bool = True, **patches: tuple[int, bytes]) -> list[Attack]:
        content = patched(plain, **patches)
        found = [Attack(name, content)]
        return [*found, Attack(f"{name}, gzipped", gzip.compress(content, 1, mtime=0))] if compress else found

    def dims(*sizes: int) -> tuple[int, bytes]:
        return DIM, struct.pack(f"<{1 + len(sizes)}h", len(sizes), *sizes)

    def nrrd(name: str, data: bytes, more: str = "", **fields: str) -> Attack:
        default = {
            "type": "short",
            "sizes": " ".join(map(str, scan.shape)),
            "directions": "(3,0,0) (0,3,0) (0,0,3)",
            "encoding": "raw",
        }
        return Attack(f"NRRD {name}", _NRRD.format(**default | fields, more=more).encode() + data)

    floats = voxels_as(scan, "<f4")
    affine = np.diag([3.0, 3, 3, 1]).astype("<f4")
    return [
        *changed("10^12 voxels", dim=dims(10_000, 10_000, 10_000)),
        *changed("10^13 voxels", dim=dims(32_767, 32_767, 32_767)),
        *changed("negative size", dim=dims(-20, 20, 16)),
        *changed("no voxels", dim=dims(20, 0, 16)),
        *changed("four axes", dim=dims(20, 20, 8, 2)),
        *changed("slope 1e30", slope=(SLOPE, struct.pack("<2f", 1e30, 0))),
        *changed("slope 1e-30", slope=(SLOPE, struct.pack("<2f", 1e-30, 0))),
        *changed("slope NaN", slope=(SLOPE, struct.pack("<2f", np.nan, 0))),
        *changed("intercept infinite", slope=(SLOPE, struct.pack("<2f", 1, np.inf))),
        *changed("affine NaN", srow=(SROW, struct.pack("<4f", np.nan, 0, 0, 0))),
        *changed("affine infinite", srow=(SROW, struct.pack("<4f", np.inf, 0, 0, 0))),
        *changed("affine singular", srow=(SROW, bytes(48))),
        *changed("origin far away", srow=(SROW, struct.pack("<4f", 3, 0, 0, 1e30))),
        *changed("spacing 6 mm", srow=(SROW, (affine * 2)[:3].tobytes()), pixdim=spacing(6)),
        *changed("spacing 1e-30 mm", srow=(SROW, (affine * 1e-30)[:3].tobytes()), pixdim=spacing(1e-30)),
        *changed("voxels at 16 MB", offset=(VOX_OFFSET, struct.pack("<f", 1 << 24))),
        *changed("voxels before the header", offset=(VOX_OFFSET, struct.pack("<f", 0))),
        *changed("complex values", datatype=(DATATYPE, struct.pack("<2h", 1792, 128))),
        Attack("gzip bomb after the voxels", gzip.compress(plain + 64 * many, mtime=0)),
        Attack(
            "gzip bomb of its size",
            gzip.compress(patched(header, dim=dims(2_000, 2_000, 100)) + 763 * many, 1, mtime=0),
        ),
        Attack("gzip bomb of extensions", gzip.compress(patched(header, o=offset_of(1 << 24)) + 16 * many + voxels)),
        Attack("gzip of gzip", gzip.compress(gzip.compress(plain))),
        Attack("gzip members without content", 40_000 * empty_member + gzip.compress(plain)),
        Attack("gzip header that does not end", b"\x1f\x8b\x08\x08" + bytes(6) + b"a" * (1 << 20)),
        Attack("voxels of a gzip stream that was cut", gzip.compress(plain)[:-9]),
        nrrd("10^12 voxels", b"", sizes="10000 10000 10000"),
        nrrd("10^15 voxels, gzipped", gzip.compress(voxels), sizes="100000 100000 100000", encoding="gzip"),
        nrrd("of many digits", voxels, sizes="9" * 400 + " 1 1"),
        nrrd("direction NaN", voxels, directions="(nan,0,0) (0,3,0) (0,0,3)"),
        nrrd("direction infinite", voxels, directions="(inf,0,0) (0,3,0) (0,0,3)"),
        nrrd("direction of zeros", voxels, directions="(0,0,0) (0,3,0) (0,0,3)"),
        nrrd("float NaN", np.full(scan.shape, np.nan, "<f4").tobytes(), type="float"),
        nrrd("float infinite", np.full(scan.shape, np.inf, "<f4").tobytes(), type="float"),
        nrrd("float", floats, type="float"),
        nrrd("doubles of 1e300", np.full(scan.shape, 1e300, "<f8").tobytes(), type="double"),
        nrrd("detached", b"", more="data file: /etc/passwd\n"),
        nrrd("detached list", b"", more="data file: LIST\n/etc/passwd\n"),
        nrrd("gzip header that does not end", b"\x1f\x8b\x08\x08" + bytes(6) + b"a" * (1 << 20), encoding="gzip"),
        nrrd("gzip in gzip", gzip.compress(gzip.compress(voxels)), encoding="gzip"),
        nrrd("members without content", 40_000 * empty_member + gzip.compress(voxels), encoding="gzip"),
        Attack("NRRD of many lines", gzip.compress(b"NRRD0004\n" + b"#\n" * (1 << 19))),
        Attack("NRRD of one line", b"NRRD0004\n" + b"#" * (4 << 20)),
        Attack(
            "NRRD of many vectors",
            _NRRD.format(type="short", sizes="1 1 1", directions="(" * 900_000, encoding="raw", more="").encode(),
        ),
        *archives(plain),
        Attack("DICOM", bytes(128) + b"DICM" + b"\x02\0\0\0UL\x04\0" + bytes(300)),
        Attack("no bytes", b""),
        Attack("zeros", bytes(4096)),
        Attack("the untouched scan", plain),
    ]


def archives(plain: bytes) -> list[Attack]:
    """A volume in a zip and in a tar archive."""
    zipped, tarred = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("scan.nii", plain)
    with tarfile.open(fileobj=tarred, mode="w:gz") as archive:
        member = tarfile.TarInfo("scan.nii")
        member.size = len(plain)
        archive.addfile(member, io.BytesIO(plain))
    return [Attack("zip", zipped.getvalue()), Attack("tar.gz", tarred.getvalue())]


def spacing(mm: float) -> tuple[int, bytes]:
    """A patch of `pixdim`."""
    return PIXDIM + 4, struct.pack("<3f", mm, mm, mm)


def offset_of(count: int) -> tuple[int, bytes]:
    """A patch of `vox_offset`."""
    return VOX_OFFSET, struct.pack("<f", count)


def voxels_as(scan: Volume, dtype: str) -> bytes:
    """The voxels of a scan as another type."""
    return bytes(scan.array.astype(dtype).tobytes(order="F"))
