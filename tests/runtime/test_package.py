"""The package of a submitted job: code and settings files only, with other paths made absolute."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gtvray import __version__
from gtvray.errors import TooLargeError
from gtvray.runtime.package import check_size, locate_words, package_code


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


def test_large_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "gtvray").mkdir()
    (tmp_path / "gtvray" / "scan.nii.gz").write_bytes(bytes(2_000_000))
    with pytest.raises(TooLargeError) as caught:
        check_size(tmp_path, limit_bytes=1_000_000)
    assert "gtvray/scan.nii.gz 2.0 MB" in caught.value.fields["found"]
    assert "--installed" in caught.value.fields["do"]
