"""Dataset descriptions: statistics of the files, comparison with a published card, and the self-contained page."""

from __future__ import annotations

import base64
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from gtvray.cli.data import app
from gtvray.datasets import describe_dataset, html_page, index_dataset, markdown, parse_card
from gtvray.datasets.checks.survey import survey_case
from gtvray.datasets.description.card import (
    STRUCTSEG_2019_TASK2,
    compare,
    inconsistencies,
    known_card,
    suspected_errata,
)
from gtvray.datasets.description.describe import Description
from gtvray.datasets.description.pictures import tile
from gtvray.datasets.description.statistics import histogram, percentiles
from gtvray.errors import InputError
from gtvray.geometry import Volume
from gtvray.io import read_volume

from ..pages import Page, assert_self_contained

CARD = """
| Dimensions | Modality | Data Volume | File Format |
|------------|----------|-------------|-------------|
| 3D         | CT       | 4           | .nii.gz     |

| Dataset Statistics | spacing (mm)       | size            |
|--------------------|--------------------|-----------------|
| min                | (1.0, 1.0, 3.0)    | (512, 512, 100) |
| median             | (1.1, 1.1, 3.0)    | (512, 512, 120) |
| max                | (1.2, 1.2, 3.0)    | (512, 512, 150) |

Number of 2D slices in the dataset: 490

| Anatomical Structure | Nasopharyngeal Carcinoma |
| -------------------- | ------------------------ |
| Occurrences          | 4                        |
| Percentage           | 100%                     |

```
Naso_GTV
├──1
│   ├── data.nii.gz
```
"""


@pytest.fixture(scope="module")
def few(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four phantoms, the last without a mask."""
    folder = tmp_path_factory.mktemp("private") / "few"
    for name in ("1", "2", "3", "4"):
        shutil.copytree(phantoms / name, folder / name)
    (folder / "4" / "label.nii.gz").unlink()
    return folder


@pytest.fixture(scope="module")
def described(few: Path) -> Description:
    return describe_dataset(index_dataset(few, labels_required=False), pictures=True)


def test_statistics_equal_those_computed_from_the_files(few: Path, described: Description) -> None:
    scans = [read_volume(few / name / "data.nii.gz") for name in "1234"]
    labels = [read_volume(few / name / "label.nii.gz") for name in "123"]
    found = described.statistics
    assert (found["cases"], found["readable"], found["with_mask"], found["percentage"]) == (4, 4, 3, 75)
    assert found["slices"] == sum(scan.shape[2] for scan in scans)
    for row, reduce in (("min", np.min), ("median", np.median), ("max", np.max)):
        assert found["size"][row] == reduce([scan.shape for scan in scans], axis=0).tolist()
        assert found["spacing_mm"][row] == pytest.approx(reduce([scan.spacing_mm for scan in scans], axis=0))
    volumes = [float(label.array.sum()) * label.voxel_volume_ml for label in labels]
    tumours = found["tumours"]
    assert tumours["ml"] == pytest.approx(
        {"min": min(volumes), "median": float(np.median(volumes)), "max": max(volumes)}
    )
    assert tumours["components"] == {"min": 1, "median": 1, "max": 1}
    inside = np.concatenate([scan.array[label.array > 0] for scan, label in zip(scans, labels, strict=False)])
    assert found["intensity"]["tumour_hu"]["50"] == pytest.approx(np.median(inside), abs=1)
    assert found["intensity"]["highest_hu"]["max"] == max(scan.array.max() for scan in scans)


def test_facts_of_a_case_equal_those_computed_from_its_files(few: Path) -> None:
    case = index_dataset(few, labels_required=False).cases[0]
    scan, label = (read_volume(path).reoriented("RAS") for path in (case.image, case.label))  # type: ignore[arg-type]
    facts = survey_case(case).facts
    assert facts is not None
    assert facts.tumour is not None
    voxels = np.argwhere(label.array)
    centre = label.affine[:3, :3] @ voxels.mean(axis=0) + label.affine[:3, 3]
    assert facts.tumour.centre_ras_mm == pytest.approx(tuple(centre))
    assert facts.tumour.slices == len(np.unique(voxels[:, 2]))
    extent = (voxels.max(axis=0) - voxels.min(axis=0) + 1) * label.spacing_mm
    assert facts.tumour.extent_mm == pytest.approx(tuple(extent))
    assert facts.tumour_counts is not None
    assert facts.tumour_counts.sum() == len(voxels)
    tissue = np.percentile(scan.array[scan.array > -400], 50)
    assert percentiles([facts.body_counts])["50"] == pytest.approx(tissue, abs=15)


def test_end_bins_of_a_histogram_count_values_outside_its_range() -> None:
    counts = np.zeros(4096, np.int64)
    counts[[0, 1024, 1030, 4095]] = 1, 5, 1, 3
    bars = dict(histogram([counts, counts], low=-32, high=32, width=16))
    assert bars == pytest.approx({-32: 0.1, -16: 0, 0: 0.6, 16: 0.3})
    assert percentiles([counts])["50"] == 0


def test_unreadable_cases_are_counted_and_reported(few: Path, tmp_path: Path) -> None:
    shutil.copytree(few / "1", tmp_path / "1")
    (tmp_path / "2").mkdir()
    (tmp_path / "2" / "data.nii.gz").write_bytes(b"not a volume")
    found = describe_dataset(index_dataset(tmp_path, labels_required=False))
    assert (found.statistics["cases"], found.statistics["readable"], found.statistics["with_mask"]) == (2, 1, 1)
    assert "scan.unreadable" in markdown(found)
    (tmp_path / "1" / "data.nii.gz").write_bytes(b"nor this")
    alone = describe_dataset(index_dataset(tmp_path, labels_required=False), pictures=True)
    assert alone.statistics["readable"] == 0
    assert "scan.unreadable" in html_page(alone)


def test_page_is_self_contained_and_has_no_paths(few: Path, described: Description) -> None:
    page = html_page(described)
    sources = assert_self_contained(page).attributes("img", "src")
    assert len(sources) == 4
    for source in sources:
        assert source is not None
        kind, data = source.split(",", 1)
        assert kind == "data:image/webp;base64"
        with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
            assert picture.size[0] > 200
    assert len(page) < 200_000
    for text in (page, markdown(described), json.dumps(described.as_dict())):
        assert str(few.parent) not in text
        assert "private" not in text
    for words in ("Montage", "no surface is drawn", "Research use only", "few/", "label.missing"):
        assert words in page


def test_names_are_escaped_in_the_page(few: Path, tmp_path: Path) -> None:
    shutil.copytree(few / "1", tmp_path / "<b>1|2")
    description = describe_dataset(index_dataset(tmp_path), pictures=True)
    assert "<b>" not in html_page(description)
    assert Page(html_page(description)).open == []


def test_description_is_valid_json(described: Description) -> None:
    back = json.loads(json.dumps(described.as_dict(), allow_nan=False))
    assert [row["case"] for row in back["per_case"]] == ["1", "2", "3", "4"]
    assert back["card"] is None


def test_patient_left_is_on_the_viewers_right_in_a_tile() -> None:
    hu = np.full((60, 50, 30), -1000, dtype=np.int16)
    hu[8:52, 8:42] = 0
    # At the low end of axes that run to the right and to the front: the patient's left, posterior.
    hu[40:48, 10:16] = 900
    mask = np.zeros(hu.shape, np.uint8)
    mask[20:30, 20:30, 10:20] = 1
    affine = np.diag([-2.0, 2.0, 3.0, 1.0])
    for codes in ("LAS", "RPI", "SAR"):
        content = tile(Volume(hu, affine).reoriented(codes), Volume(mask, affine).reoriented(codes))
        with Image.open(io.BytesIO(content)) as picture:
            rgb = np.asarray(picture.convert("RGB")).astype(int)[:, :150]
        rows, columns = np.nonzero(rgb.min(axis=-1) > 230)
        assert np.median(columns) > 90
        assert np.median(rows) > 75
        outlined = (rgb[..., 1] - rgb[..., 0] > 60).sum()
        assert outlined > 40


def test_card_is_parsed() -> None:
    card = parse_card(CARD)
    assert (card.cases, card.formats, card.slices, card.occurrences, card.percentage, card.folder) == (
        4, ".nii.gz", 490, 4, 100.0, "Naso_GTV",
    )  # fmt: skip
    assert card.spacing_mm["median"] == (1.1, 1.1, 3.0)
    assert card.size["max"] == (512, 512, 150)
    assert inconsistencies(card) == []
    with pytest.raises(InputError, match="not a dataset card"):
        parse_card("# A readme\n\nwith words | and a bar")


def test_known_card_equals_the_published_one(shared_data: Path) -> None:
    file = shared_data.parent / "seed" / "StructSeg2019_Task2.md"
    if not file.is_file():
        pytest.skip("the published card is not available (../shared/seed)")
    card = parse_card(file.read_text())
    assert replace(card, about="") == replace(STRUCTSEG_2019_TASK2, about="")
    assert inconsistencies(card) == inconsistencies(STRUCTSEG_2019_TASK2)


def test_inconsistencies_of_the_known_card_are_found() -> None:
    found = [(item, why) for item, _, why in inconsistencies(STRUCTSEG_2019_TASK2)]
    assert [item for item, _ in found] == ["max spacing_mm", "max spacing_mm", "data volume", "folder"]
    for (_, why), words in zip(found, ("not square", "960 mm", "60 patients", "organs at risk"), strict=True):
        assert words in why


@pytest.mark.parametrize(
    ("slices", "possible"), [(6151, True), (5599, False), (5600, True), (6900, True), (6901, False)]
)
def test_impossible_number_of_slices_is_found(slices: int, possible: bool) -> None:
    found = [item for item, _, _ in inconsistencies(replace(STRUCTSEG_2019_TASK2, slices=slices))]
    assert ("number of 2-D slices" in found) is not possible


STATISTICS = {
    "cases": 50,
    "readable": 50,
    "with_mask": 50,
    "percentage": 100.0,
    "formats": {".nii.gz": 50},
    "slices": 6151,
    # The values if the card lacks a digit, without rounding.
    "spacing_mm": {"min": [0.9765625] * 2 + [3.0], "median": [1.140625] * 2 + [3.0], "max": [1.1875] * 2 + [3.0]},
    "size": {"min": [512, 512, 100], "median": [512, 512, 124], "max": [512, 512, 152]},
}


def test_deviations_beyond_rounding_are_suspected_errata() -> None:
    compared = compare(STRUCTSEG_2019_TASK2, STATISTICS, "HaN_OAR")
    assert [row["item"] for row in compared if not row["agrees"]] == ["max spacing_mm"]
    errata = suspected_errata(STRUCTSEG_2019_TASK2, compared)
    assert errata[0] == {
        "item": "max spacing_mm",
        "published": "(1.1875, 1.875, 3)",
        "computed": "(1.1875, 1.1875, 3)",
        "why": "differs from the files",
    }
    # With other data than the card's, only inconsistencies within the card are reported.
    other = compare(STRUCTSEG_2019_TASK2, STATISTICS | {"cases": 33, "slices": 4000}, "HaN_OAR")
    assert "differs from the files" not in [each["why"] for each in suspected_errata(STRUCTSEG_2019_TASK2, other)]


def test_known_card_applies_to_its_own_cases_only(described: Description) -> None:
    assert known_card(STATISTICS, "GTV", "Naso_GTV") is STRUCTSEG_2019_TASK2
    assert known_card(STATISTICS, "GTV", "mine") is None
    assert known_card(STATISTICS, "lung", "Naso_GTV") is None
    assert known_card(STATISTICS | {"readable": 49}, "GTV", "Naso_GTV") is None
    assert known_card(STATISTICS | {"size": {"median": [128, 128, 128]}}, "GTV", "Naso_GTV") is None
    assert described.comparison is None
    assert "Comparison with the card" not in markdown(described)


def test_describe_command_writes_three_files_and_prints_one_object(few: Path, tmp_path: Path) -> None:
    card = tmp_path / "card.md"
    card.write_text(CARD)
    out = tmp_path / "out"
    result = CliRunner().invoke(app, ["describe", str(few), "--out", str(out), "--card", str(card), "--json"])
    assert result.exit_code == 0
    stored = json.loads((out / "describe.json").read_text())
    assert stored.pop("gtvray_mark").startswith("gtvray sha256:")
    assert json.loads(result.stdout) == stored
    assert sorted(path.name for path in out.iterdir()) == ["describe.html", "describe.json", "describe.md"]
    assert "Suspected errata" in (out / "describe.md").read_text()
    assert CliRunner().invoke(app, ["describe", str(few)]).stdout.startswith("# few\n")


@pytest.mark.parametrize(
    ("fault", "strict", "code"), [(None, False, 0), ("hole", False, 0), ("hole", True, 2), ("empty", False, 2)]
)
def test_exit_code_of_the_check_command(
    phantoms: Path, tmp_path: Path, fault: str | None, strict: bool, code: int
) -> None:
    from gtvray.io import write_volume

    shutil.copytree(phantoms / "3", tmp_path / "3")
    file = tmp_path / "3" / "label.nii.gz"
    label = read_volume(file)
    array = label.array.copy()
    if fault == "empty":
        array[:] = 0
    elif fault == "hole":
        i, j, k = (int(n) for n in np.argwhere(array).mean(axis=0))
        array[i - 1 : i + 2, j - 1 : j + 2, k] = 0
    write_volume(file, label.with_array(array))
    result = CliRunner().invoke(app, ["check", str(tmp_path), "--json", *(["--strict"] if strict else [])])
    assert result.exit_code == code
    found = json.loads(result.stdout)
    assert [finding["code"] for finding in found["findings"]] == {
        None: [], "hole": ["label.holes"], "empty": ["label.empty"],
    }[fault]  # fmt: skip
