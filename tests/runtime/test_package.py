"""The package of a submitted job: code and settings files only, with other paths made absolute."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import typer

from gtvray import __version__
from gtvray.cli.main import app
from gtvray.errors import TooLargeError
from gtvray.runtime.jobs import WORKSPACE_VARIABLE, _runtime_env
from gtvray.runtime.package import _TARGETS, FLAGS, check_size, locate_words, package_code


def test_packaged_code_runs_without_the_repository(tmp_path: Path) -> None:
    package_code(tmp_path)
    names = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert ".pyc" not in names
    assert (tmp_path / "gtvray" / "tune_configs" / "demo.yaml").is_file()
    assert (tmp_path / "gtvray" / "deploy" / "config.yaml").is_file()
    check_size(tmp_path)
    ask = "import gtvray, gtvray.deploy; print(gtvray.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", ask], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == str(tmp_path / "gtvray" / "__init__.py")
    assert __version__ in (tmp_path / "gtvray" / "__init__.py").read_text()


def test_settings_files_are_packaged_and_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "space.yaml").write_text("trials: 2\n")
    (tmp_path / "data").mkdir()
    words = ["sweep", "space.yaml", "--data=data", "--workspace", "runs", "--json", "optimizer.lr=3e-4", "other.yaml"]
    located = locate_words(words, tmp_path / "job")
    here = str(tmp_path)
    assert located == [
        "sweep",
        "settings/1/space.yaml",
        f"--data={here}/data",
        "--workspace",
        f"{here}/runs",
        "--json",
        "optimizer.lr=3e-4",
        "other.yaml",
    ]
    assert (tmp_path / "job" / located[1]).read_text() == "trials: 2\n"
    assert locate_words(["sweep", "space.yaml"], None) == ["sweep", f"{here}/space.yaml"]


def test_uris_stay_uris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`abspath` would make a local folder named `s3:` of one."""
    monkeypatch.chdir(tmp_path)
    words = ["sweep", "--workspace", "s3://b/x", "--data=gs://b/data", "s3://b/space.yaml"]
    assert locate_words(words, tmp_path / "job") == words
    export = ["models", "export", "champion", "s3://bucket/site-b"]
    assert locate_words(export, None) == export
    monkeypatch.setenv(WORKSPACE_VARIABLE, "s3://b/x")
    assert _runtime_env(None)["env_vars"][WORKSPACE_VARIABLE] == "s3://b/x"  # type: ignore[index]


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("data phantom --count 3 new --json", "data phantom --count 3 {here}/new --json"),
        (
            "data export --layout nnunet --blind A B --key=k",
            "data export --layout nnunet --blind A {here}/B --key={here}/k",
        ),
        ("data import -- A B", "data import -- A {here}/B"),
        (
            "models export tracking.uri=http://m:5000 --format monai champion site-b",
            "models export tracking.uri=http://m:5000 --format monai champion {here}/site-b",
        ),
        ("models show champion", "models show champion"),
        ("doctor", "doctor"),
    ],
)
def test_new_folders_become_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, expected: str
) -> None:
    """A relative one would be written to the job's working directory, which Ray removes."""
    monkeypatch.chdir(tmp_path)
    assert " ".join(locate_words(command.split(), None)) == expected.format(here=tmp_path)


def test_options_without_a_value_are_known() -> None:
    """The word after another option is its value, not an argument."""
    commands = typer.main.get_command(app)
    for names in _TARGETS:
        command = commands
        for name in names:
            command = command.commands[name]  # type: ignore[attr-defined]
        options = [param for param in command.params if param.param_type_name == "option"]
        flags = {name for param in options if getattr(param, "is_flag", False) for name in param.opts}
        values = {name for param in options if not getattr(param, "is_flag", False) for name in param.opts}
        assert flags <= set(FLAGS), names
        assert not values & set(FLAGS), names


def test_run_id_and_person_reach_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GTVRAY_RUN_ID", "GTVRAY_WHO"):
        monkeypatch.delenv(name, raising=False)
    assert not {"GTVRAY_RUN_ID", "GTVRAY_WHO"} & set(_runtime_env(None)["env_vars"])  # type: ignore[call-overload]
    monkeypatch.setenv("GTVRAY_RUN_ID", "first")
    monkeypatch.setenv("GTVRAY_WHO", "A. Reader")
    variables = _runtime_env(None)["env_vars"]
    assert (variables["GTVRAY_RUN_ID"], variables["GTVRAY_WHO"]) == ("first", "A. Reader")  # type: ignore[index]


def test_large_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "gtvray").mkdir()
    (tmp_path / "gtvray" / "scan.nii.gz").write_bytes(bytes(2_000_000))
    with pytest.raises(TooLargeError) as caught:
        check_size(tmp_path, limit_bytes=1_000_000)
    assert "gtvray/scan.nii.gz 2.0 MB" in caught.value.fields["found"]
    assert "--installed" in caught.value.fields["do"]
