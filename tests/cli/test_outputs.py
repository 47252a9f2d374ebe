"""Outputs of commands: foreign files are not replaced, and names are accepted or refused before work starts."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from gtvray.batch import RECORD, plan_files
from gtvray.cli.common import shell_command
from gtvray.cli.main import app
from gtvray.errors import GtvrayError, InputError
from gtvray.geometry import Volume
from gtvray.io import is_own_file, read_json, read_volume, write_volume
from gtvray.models import Bundle

from ..bundles import random_bundle

NAMES = ["a b 'c' \"d\"", "#h %20 50% q?", "[b]{x}*$(y)`z`;&|\\", "é日本\u00a0x", "-dash", "x" * 200]


@pytest.fixture(scope="module")
def ball() -> tuple[Volume, Volume]:
    """A ball of tissue with a tumour: a scan and its mask."""
    shape, affine = (30, 28, 24), np.diag([-4.0, -4.0, 5.0, 1.0])
    i, j, k = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    body, tumour = i**2 + j**2 + k**2 < 0.9, i**2 + j**2 + k**2 < 0.08
    hu = np.where(body, 40 + 10 * tumour, -1000).astype(np.int16)
    return Volume(hu, affine), Volume(tumour.astype(np.uint8), affine)


@pytest.fixture
def scans(ball: tuple[Volume, Volume], tmp_path: Path) -> Path:
    """Two scans in a folder, without any layout."""
    for name in ("ct_1.nii.gz", "ct_2.nii.gz"):
        write_volume(tmp_path / "scans" / name, ball[0])
    return tmp_path / "scans"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return random_bundle(tmp_path_factory.mktemp("outputs") / "bundle")


def run(*words: object) -> Any:
    """Run a command in this process and return the JSON that it prints; its error is raised."""
    done = CliRunner().invoke(app, [*map(str, words), "--json"], catch_exceptions=True)
    if isinstance(done.exception, GtvrayError):
        raise done.exception
    assert done.exit_code == 0, (done.output, done.exception)
    return json.loads(done.stdout)


def _contents(*folders: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("server", [False, True])
@pytest.mark.parametrize("overwrite", [False, True])
def test_scan_is_never_replaced_by_its_mask(scans: Path, tmp_path: Path, server: bool, overwrite: bool) -> None:
    before = _contents(tmp_path)
    # Neither the model nor the endpoint exists: outputs are checked before either is used.
    where = ["--server", "http://127.0.0.1:9"] if server else ["-m", "no-such-version"]
    options = [*where, "--workspace", tmp_path / "runs", *(["--overwrite"] if overwrite else [])]
    one, two = scans / "ct_1.nii.gz", scans / "ct_2.nii.gz"
    for words in ([one, two, "-o", scans], [one, "-o", one], [one, "-o", scans / ".." / "scans" / one.name]):
        with pytest.raises(InputError, match="output would overwrite an input"):
            run("predict", *words, *options)
    for words in ([scans, "-o", scans], [scans, "-o", scans / "ct_1-mask.nii.gz"]):
        with pytest.raises(InputError):
            run("predict", *words, *options)
    assert _contents(tmp_path) == before


@pytest.mark.parametrize(
    ("out", "what"),
    [
        ("masks.nii.gz", "one file for several masks"),
        ("MASK.NII.GZ", "one file for several masks"),
        ("masks.nrrd", "one file for several masks"),
        ("out.mha", "no format for this name"),
        ("out.nhdr", "no format for this name"),
        ("out.dcm", "no format for this name"),
        ("out.gz", "no format for this name"),
    ],
)
def test_output_with_a_file_extension_is_not_a_folder(scans: Path, tmp_path: Path, out: str, what: str) -> None:
    with pytest.raises(InputError, match=what):
        plan_files([scans], tmp_path / out, report=False, uncertainty=False, overwrite=False)
    assert not (tmp_path / out).exists()


@pytest.mark.parametrize("out", ["masks", "masks.2024.01", ".masks", "made.mha"])
def test_names_of_folders(scans: Path, tmp_path: Path, out: str) -> None:
    (tmp_path / "made.mha").mkdir()
    files = plan_files([scans], tmp_path / out, report=True, uncertainty=False, overwrite=False)
    assert list(files.masks.values()) == [tmp_path / out / f"ct_{n}.nii.gz" for n in (1, 2)]
    assert files.reports == (tmp_path / out / "report.json", tmp_path / out / "report.html")


@pytest.mark.slow
def test_an_ending_in_capitals_is_the_same_format(scans: Path, tmp_path: Path, bundle: Bundle) -> None:
    shutil.copyfile(scans / "ct_1.nii.gz", tmp_path / "SCAN.NII.GZ")
    mask = tmp_path / "MASK.NII.GZ"
    run("predict", tmp_path / "SCAN.NII.GZ", "-o", mask, "-m", bundle.folder)
    assert read_volume(mask).same_grid(read_volume(scans / "ct_1.nii.gz"))
    files = plan_files([tmp_path / "SCAN.NII.GZ"], tmp_path / "m", report=False, uncertainty=False, overwrite=False)
    assert list(files.masks.values()) == [tmp_path / "m" / "SCAN.nii.gz"]


@pytest.mark.slow
def test_folder_of_scans_is_predicted_and_other_files_are_listed(
    scans: Path, tmp_path: Path, bundle: Bundle, ball: tuple[Volume, Volume]
) -> None:
    out = tmp_path / "masks"
    write_volume(scans / "b.nrrd", ball[0])
    (scans / "notes.txt").write_text("mine")
    (scans / "old").mkdir()
    (scans / "._ct_1.nii.gz").write_bytes(b"what macOS leaves")
    write_volume(scans / "b.seg.nrrd", ball[1])
    run("predict", scans / "ct_1.nii.gz", "-o", tmp_path / "m.nii.gz", "-m", bundle.folder)
    shutil.move(tmp_path / "m.nii.gz", scans / "mask of yesterday.nii.gz")
    found = run("predict", scans, "-o", out, "-m", bundle.folder, "--report")
    assert [row["scan"] for row in found["masks"]] == ["b", "ct_1", "ct_2"]
    assert {Path(name).name: why for name, why in found["skipped"].items()} == {
        "b.seg.nrrd": "a mask, by its name",
        "mask of yesterday.nii.gz": "an output of gtvray",
        "notes.txt": "not a .nii, .nii.gz, .nrrd or .nhdr file",
        "old": "a folder",
    }
    names = ["b.nii.gz", "ct_1.nii.gz", "ct_2.nii.gz", RECORD, "report.html", "report.json"]
    assert sorted(path.name for path in out.iterdir()) == names
    assert all(is_own_file(path) for path in out.iterdir() if path.name != RECORD)
    assert read_json(out / "report.json")["skipped"] == found["skipped"]
    assert "notes.txt" in (out / "report.html").read_text()


def test_scans_of_one_name_are_refused(scans: Path, tmp_path: Path, ball: tuple[Volume, Volume]) -> None:
    write_volume(scans / "ct_1.nrrd", ball[0])
    with pytest.raises(InputError, match="two scans have the same name"):
        plan_files([scans], tmp_path / "m", report=False, uncertainty=False, overwrite=False)
    (scans / "ct_1.nrrd").rename(scans / "CT_1.nrrd")
    with pytest.raises(InputError, match="two outputs have the same name"):
        plan_files([scans], tmp_path / "m", report=False, uncertainty=False, overwrite=False)
    (scans / "CT_1.nrrd").rename(scans / "ct_1-entropy.nrrd")
    with pytest.raises(InputError, match="two outputs have the same name"):
        plan_files([scans], tmp_path / "m", report=False, uncertainty=True, overwrite=False)


def test_only_own_unchanged_outputs_are_replaced(scans: Path, tmp_path: Path, bundle: Bundle) -> None:
    out = tmp_path / "masks"
    command = ("predict", scans, "-o", out, "-m", bundle.folder, "--report")
    run(*command)
    before = _contents(out)
    with pytest.raises(InputError, match="already exists") as caught:
        run(*command)
    assert "--overwrite" in caught.value.fields["do"]
    run(*command, "--overwrite")
    assert all(is_own_file(path) for path in out.iterdir() if path.name != RECORD)
    masks = [path for path in before if path.suffix == ".gz"]
    assert {path: path.read_bytes() for path in masks} == {path: before[path] for path in masks}

    (out / "report.json").write_text('{"mine": true}')
    edited = read_volume(out / "ct_2.nii.gz")
    write_volume(out / "ct_2.nii.gz", edited.with_array(1 - edited.array))
    before = _contents(out)
    with pytest.raises(InputError, match="not an unmodified gtvray output") as caught:
        run(*command, "--overwrite")
    assert caught.value.fields["where"] == f"{out / 'ct_2.nii.gz'}, {out / 'report.json'}"
    assert _contents(out) == before


def test_masks_do_not_go_into_a_model_or_among_labels(
    ball: tuple[Volume, Volume], tmp_path: Path, bundle: Bundle
) -> None:
    home = tmp_path / "cases" / "1"
    write_volume(home / "data.nii.gz", ball[0])
    write_volume(home / "label.nii.gz", ball[1])
    for out in (bundle.folder, bundle.folder / "new"):
        with pytest.raises(InputError, match="scans, masks or a model"):
            run("predict", home.parent, "-o", out, "-m", bundle.folder)
    with pytest.raises(InputError, match="scans, masks or a model"):
        run("predict", home.parent, "-o", home / "mask.nii.gz", "-m", bundle.folder)
    with pytest.raises(InputError, match=r"overwrite an input|not an unmodified gtvray output|scans, masks or a model"):
        run("predict", home, "-o", home / "label.nii.gz", "-m", bundle.folder)
    Bundle.load(bundle.folder)


def test_an_evaluation_replaces_neither_a_foreign_report_nor_an_edited_mask(
    ball: tuple[Volume, Volume], tmp_path: Path, bundle: Bundle
) -> None:
    home, out, place = tmp_path / "cases", tmp_path / "out", tmp_path / "runs"
    write_volume(home / "1" / "data.nii.gz", ball[0])
    write_volume(home / "1" / "label.nii.gz", ball[1])
    nowhere = ("-s", "tracking.uri=http://127.0.0.1:9")
    command = ("evaluate", "--data", home, "-m", bundle.folder, "-o", out, "--workspace", place, *nowhere)
    (out / "report").mkdir(parents=True)
    (out / "report" / "thesis.tex").write_text("mine")
    for words in (command, (*command, "--overwrite")):
        with pytest.raises(InputError, match="not an unmodified gtvray output"):
            run(*words)
    assert (out / "report" / "thesis.tex").read_text() == "mine"
    # No look at the cases was recorded for an evaluation that could not be written.
    assert not place.exists()
    shutil.rmtree(out)

    run(*command)
    with pytest.raises(InputError, match="already exists"):
        run(*command)
    run(*command, "--overwrite")
    (mask,) = (out / "masks").rglob("*.nii.gz")
    write_volume(mask, read_volume(mask))
    with pytest.raises(InputError, match="not an unmodified gtvray output"):
        run(*command, "--overwrite")


def test_description_and_plan_do_not_replace_foreign_files(ball: tuple[Volume, Volume], tmp_path: Path) -> None:
    home, out = tmp_path / "cases", tmp_path / "out"
    write_volume(home / "1" / "data.nii.gz", ball[0])
    write_volume(home / "1" / "label.nii.gz", ball[1])
    (out / "describe.html").parent.mkdir()
    (out / "describe.html").write_text("mine")
    with pytest.raises(InputError, match="not an unmodified gtvray output"):
        run("data", "describe", home, "-o", out, "--overwrite")
    assert [path.name for path in out.iterdir()] == ["describe.html"]
    (out / "describe.html").unlink()
    run("data", "describe", home, "-o", out)
    with pytest.raises(InputError, match="already exists"):
        run("data", "describe", home, "-o", out)
    run("data", "describe", home, "-o", out, "--overwrite")
    with pytest.raises(InputError, match="overwrite an input"):
        run("data", "describe", home, "-o", out, "--card", out / "describe.md", "--overwrite")
    settings = tmp_path / "my.yaml"
    settings.write_text("training: {epochs: 3}\n")
    for options in ([], ["--config", settings], ["--overwrite"]):
        with pytest.raises(
            InputError, match=r"overwrite an input|not an unmodified gtvray output|scans, masks or a model"
        ):
            run("config", "plan", home, "-o", settings, "--workspace", tmp_path / "runs", *options)
    assert settings.read_text() == "training: {epochs: 3}\n"


@pytest.mark.parametrize("name", [NAMES[0], *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES[1:])])
def test_any_name_works(ball: tuple[Volume, Volume], tmp_path: Path, bundle: Bundle, name: str) -> None:
    home, place = tmp_path / name, tmp_path / f"w{name}"[:220]
    write_volume(home / name / "data.nii.gz", ball[0])
    write_volume(home / name / "label.nii.gz", ball[1])
    assert run("data", "check", home)["counts"].get("error", 0) == 0
    run("data", "describe", home, "-o", tmp_path / "out" / name)
    assert run("data", "prepare", home, "--workspace", place)["cases"] == 1
    made = tmp_path / "copy" / name
    run("data", "import", home, made)
    key = tmp_path / "key" / f"{name}.json"
    run("data", "export", made, tmp_path / "blind" / name, "--layout", "structseg", "--blind", "--key", key)
    (row,) = run("predict", made, "-o", tmp_path / "masks" / name, "-m", bundle.folder)["masks"]
    assert row["scan"] == name
    assert read_volume(tmp_path / "masks" / name / f"{name}.nii.gz").same_grid(ball[0])
    nowhere = ("-s", "tracking.uri=http://127.0.0.1:9", "--workspace", place)
    found = run("evaluate", "--data", made, "-m", bundle.folder, *nowhere)
    copied = shlex.split(shell_command("gtvray", "evaluate", "--send", Path(found["report"]), "--workspace", place))
    assert copied == ["gtvray", "evaluate", "--send", found["report"], "--workspace", str(place)]


@pytest.mark.parametrize("name", ["a\nb", "x" * 201, "caf\udce9"])
def test_a_name_that_does_not_work_is_refused_at_once(ball: tuple[Volume, Volume], tmp_path: Path, name: str) -> None:
    write_volume(tmp_path / "cases" / name / "data.nii.gz", ball[0])
    with pytest.raises(InputError, match="a case id cannot be used as a file name"):
        run("data", "check", tmp_path / "cases")
    if len(name) < 20:
        with pytest.raises(InputError, match="path has control characters"):
            run("data", "prepare", tmp_path / "cases" / name, "--workspace", tmp_path / name)


def test_a_printed_command_can_be_pasted() -> None:
    for name in NAMES:
        assert shlex.split(shell_command("gtvray", "serve", "--workspace", f"/w/{name}"))[3] == f"/w/{name}"
    assert shell_command("gtvray", "promote", Path("-dash"), "--data", Path("a b")) == (
        "gtvray promote ./-dash --data 'a b'"
    )
