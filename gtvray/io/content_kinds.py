"""Kinds of content, and the table of file signatures."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class ContentKind(StrEnum):
    """Kinds of content that `identify` distinguishes."""

    NIFTI = "nifti"
    NIFTI_GZ = "nifti_gz"
    NRRD = "nrrd"
    NIFTI_PAIR = "nifti_pair"
    NRRD_DETACHED = "nrrd_detached"
    METAIMAGE = "metaimage"
    DICOM = "dicom"
    ZIP = "zip"
    TAR = "tar"
    GZIP = "gzip"
    OTHER_ARCHIVE = "other_archive"
    MULTIPART = "multipart"
    FORM = "form"
    BASE64 = "base64"
    ALTERED = "altered"
    JSON = "json"
    HTML = "html"
    PICTURE = "picture"
    TEXT = "text"
    EMPTY = "empty"
    OTHER = "other"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Content:
    """Identified content.

    Attributes:
        kind: kind of content.
        name: description for messages, with its article, such as "a zip archive".
        hint: instruction to convert or send it as a readable volume; empty for a supported volume file.
    """

    kind: ContentKind
    name: str
    hint: str = ""

    @property
    def readable(self) -> bool:
        """Whether this is a volume file of a supported format."""
        return self.kind in _READABLE


_READABLE = frozenset({ContentKind.NIFTI, ContentKind.NIFTI_GZ, ContentKind.NRRD})
SEND = "send only the bytes of the file as the body, for example: curl --data-binary @scan.nii.gz URL"
UNPACK = "unpack it and use the NIfTI (.nii, .nii.gz) or NRRD file inside"
CONVERT = "save the volume as .nii.gz, for example with 3D Slicer or SimpleITK"
WRONG_FILE = "use the volume file itself, a .nii, .nii.gz or .nrrd file"

SIGNATURES = (
    (b"PK\x03\x04", Content(ContentKind.ZIP, "a zip archive", UNPACK)),
    (b"PK\x05\x06", Content(ContentKind.ZIP, "an empty zip archive", WRONG_FILE)),
    (b"BZh", Content(ContentKind.OTHER_ARCHIVE, "a bzip2 stream", UNPACK)),
    (b"\xfd7zXZ", Content(ContentKind.OTHER_ARCHIVE, "an xz stream", UNPACK)),
    (b"\x28\xb5\x2f\xfd", Content(ContentKind.OTHER_ARCHIVE, "a zstandard stream", UNPACK)),
    (b"7z\xbc\xaf\x27\x1c", Content(ContentKind.OTHER_ARCHIVE, "a 7-Zip archive", UNPACK)),
    (b"Rar!\x1a", Content(ContentKind.OTHER_ARCHIVE, "a RAR archive", UNPACK)),
    (b"\x89PNG", Content(ContentKind.PICTURE, "a PNG picture", WRONG_FILE)),
    (b"\xff\xd8\xff", Content(ContentKind.PICTURE, "a JPEG picture", WRONG_FILE)),
    (b"GIF8", Content(ContentKind.PICTURE, "a GIF picture", WRONG_FILE)),
    (b"II*\0", Content(ContentKind.PICTURE, "a TIFF picture", WRONG_FILE)),
    (b"MM\0*", Content(ContentKind.PICTURE, "a TIFF picture", WRONG_FILE)),
    (b"%PDF", Content(ContentKind.OTHER, "a PDF document", WRONG_FILE)),
    (b"\x89HDF", Content(ContentKind.OTHER, "an HDF5 file", CONVERT)),
    (b"CDF\x01", Content(ContentKind.OTHER, "a netCDF file, perhaps MINC", CONVERT)),
    (b"\x93NUMPY", Content(ContentKind.OTHER, "a NumPy array, which has no affine", CONVERT)),
    (b"MZ", Content(ContentKind.OTHER, "a Windows program", WRONG_FILE)),
    (b"\x7fELF", Content(ContentKind.OTHER, "a program", WRONG_FILE)),
    (
        b"\x00\x05\x16\x07",
        Content(ContentKind.OTHER, "an AppleDouble file, which macOS creates beside others (._NAME)", WRONG_FILE),
    ),
)
