"""Corrected masks that come back from review, and which of them a training may use.

The store is a folder in StructSeg's layout with a record beside each case, so `gtvray data check` reads it as any
dataset. A correction never enters the selection or held-out cases of a split: a mask that was drawn over a model's
prediction flatters that model and its successors.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from gtvray.datasets.checks.run import alike_scans, as_error
from gtvray.datasets.checks.survey import Survey, survey_case, survey_cases
from gtvray.datasets.layouts.cases import Case, Dataset, order_cases, read_label, split_ending
from gtvray.datasets.layouts.patients import Patients
from gtvray.datasets.splits import Split
from gtvray.errors import DataError, InputError
from gtvray.io import atomic_dir, exclusive_lock, read_json, read_volume, sha256_of, write_json, write_volume

_RECORD = "correction.json"
_DIGEST = re.compile(r"[0-9a-f]{12,64}")
_PREFIX = "correction-"


@dataclass(frozen=True)
class Correction:
    """A reviewed mask of a scan.

    Attributes:
        name: its name in the store, which is its case id in a training.
        case_id: the case as the reviewer named it.
        reviewer: who drew or corrected the mask.
        source: where the mask comes from, such as a program.
        derived_from: digest of the model whose mask was corrected; None for a mask drawn from nothing.
        same_patient_as: a case of the dataset that is of the same patient; None if not stated.
        note: remark of the reviewer.
        at: when it was added, in UTC, ISO 8601.
        voxels: digest of the voxels of the scan, which does not depend on the file.
        label_sha256: digest of the mask file.
    """

    name: str
    case_id: str
    reviewer: str
    source: str
    derived_from: str | None
    same_patient_as: str | None
    note: str
    at: str
    voxels: str
    label_sha256: str


@dataclass(frozen=True)
class Review:
    """What a reviewer states about a mask; fields as in `Correction`."""

    reviewer: str
    source: str = "not stated"
    derived_from: str | None = None
    same_patient_as: str | None = None
    note: str = ""

    def __post_init__(self) -> None:
        if not self.reviewer.strip():
            raise InputError("a correction needs a reviewer", expected="a name", found=repr(self.reviewer))
        if self.derived_from is not None and not _DIGEST.fullmatch(self.derived_from):
            raise InputError(
                "not the digest of a model",
                expected="12 to 64 hexadecimal digits, as in the header X-Gtvray-Model-Digest",
                found=self.derived_from,
            )


@dataclass(frozen=True)
class UsableCorrections:
    """Corrections sorted by what a training may do with them.

    Attributes:
        replaced: case id of a training case -> the correction whose mask replaces its own.
        added: corrections of scans that the dataset does not have.
        refused: name of a correction -> why it must not be trained on.
    """

    replaced: dict[str, Correction]
    added: tuple[Correction, ...]
    refused: dict[str, str]


class CorrectionStore:
    """The corrections of a workspace; nothing in it is ever replaced.

    Args:
        folder: of the store.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, scan: Path, mask: Path, review: Review, case_id: str | None = None) -> Correction:
        """Store a scan with its corrected mask.

        Args:
            scan: NIfTI or NRRD file, which is copied byte by byte.
            mask: NIfTI or NRRD file on the grid of the scan.
            review: who corrected it, and from what.
            case_id: name of the case; the name of the scan's file by default.

        Raises:
            DataError, GeometryError, VolumeError: scan or mask are not usable, as in `gtvray data check`.
        """
        stem, ending = split_ending(scan.name) or (scan.stem, "")
        case = order_cases([Case(case_id or stem, scan, mask)], scan)[0]
        survey = _require_sound(case)
        with exclusive_lock(self._folder / ".lock", self._folder):
            return self._store(case, str(survey.digest), ending, review)

    def _store(self, case: Case, voxels: str, ending: str, review: Review) -> Correction:
        number = 1 + max((int(each.name.rpartition("-")[2]) for each in self.all()), default=0)
        name = f"{_PREFIX}{number:04d}"
        label = read_label(case, read_volume(case.image))
        with atomic_dir(self._folder / name, complete_with=_RECORD) as temporary:
            shutil.copyfile(case.image, temporary / f"data{ending}")
            write_volume(temporary / "label.nii.gz", label)
            correction = Correction(
                name,
                case.case_id,
                **asdict(review),
                at=datetime.now(UTC).isoformat(timespec="seconds"),
                voxels=voxels,
                label_sha256=sha256_of(temporary / "label.nii.gz"),
            )
            write_json(temporary / _RECORD, asdict(correction))
        return correction

    def all(self) -> list[Correction]:
        """Return every correction, oldest first."""
        return [Correction(**read_json(path)) for path in sorted(self._folder.glob(f"{_PREFIX}*/{_RECORD}"))]

    def current(self) -> list[Correction]:
        """Return the latest correction of each scan, oldest first."""
        latest = {correction.voxels: correction for correction in self.all()}
        return sorted(latest.values(), key=lambda correction: correction.name)

    def case(self, correction: Correction) -> Case:
        """Return a correction as a case.

        Raises:
            DataError: its mask has been changed since it was added.
        """
        folder = self._folder / correction.name
        label, image = folder / "label.nii.gz", next(folder.glob("data*"))
        if sha256_of(label) != correction.label_sha256:
            raise DataError(
                "the mask of a correction has been changed",
                where=label,
                expected=f"sha256 {correction.label_sha256[:12]}",
                found=sha256_of(label)[:12],
                do="add the changed mask as a correction of its own, and remove this folder",
            )
        return Case(correction.name, image, label)

    def usable(
        self,
        dataset: Dataset,
        split: Split,
        patients: Patients | None = None,
        surveys: Sequence[Survey] | None = None,
    ) -> UsableCorrections:
        """Decide which corrections may join the training cases of a split.

        Scans are compared by their voxels and by their profile along the body, so a resampled, cropped or noisy copy of
        a held-out scan is found.

        Args:
            dataset: cases of the split.
            split: roles of the cases.
            patients: patient of each case, where known.
            surveys: of the cases, if they have been read already.

        Raises:
            DataError: as `case`.
        """
        corrections = self.current()
        own = [survey_case(self.case(correction)) for correction in corrections]
        known = surveys if surveys is not None else survey_cases(dataset.cases) if corrections else []
        by_digest = {survey.digest: survey.case_id for survey in known}
        alike: dict[str, list[str]] = {}
        for name, case_id in alike_scans(own, known):
            alike.setdefault(name, []).append(case_id)
        role = {case_id: part for part, ids in split.parts.items() for case_id in ids}
        replaced, added, refused = dict[str, Correction](), list[Correction](), dict[str, str]()
        for correction in corrections:
            same = by_digest.get(correction.voxels)
            matches = {*alike.get(correction.name, ()), *([same] if same is not None else [])}
            matches |= _of_same_patient(correction.same_patient_as, patients)
            kept_apart = sorted(case_id for case_id in matches if role.get(case_id) in ("selection", "held_out"))
            if kept_apart:
                part = role[kept_apart[0]].replace("_", "-")
                refused[correction.name] = f"the scan or patient of case {kept_apart[0]}, which is a {part} case"
            elif same is not None:
                replaced[same] = correction
            else:
                added.append(correction)
        return UsableCorrections(replaced, tuple(added), refused)


def _require_sound(case: Case) -> Survey:
    survey = survey_case(case)
    errors = [each for each in survey.findings if each.severity == "error"]
    if errors:
        raise as_error(errors[0], case)
    return survey


def _of_same_patient(case_id: str | None, patients: Patients | None) -> set[str]:
    if case_id is None:
        return set()
    of_case = patients.of_case if patients is not None else {}
    return {case_id, *(other for other, patient in of_case.items() if patient == of_case.get(case_id))}
