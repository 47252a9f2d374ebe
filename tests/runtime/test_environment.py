"""Containers and hosts without a user name, a home, cache folders or a usable folder for temporary files."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gtvray.errors import ResourceError
from gtvray.runtime import environment, temporary
from gtvray.runtime.environment import TELEMETRY_OFF, can_write, create_private_file, private_folder

from ..namespaces import as_nameless_user

PROBE = (
    "import os, getpass, pathlib, gtvray; print(getpass.getuser(), pathlib.Path.home(), *map(os.environ.get, {names}))"
)


def probe(code: str, prefix: list[str], **changes: str | None) -> list[str]:
    """Words printed by a new process, with environment variables set or (None) removed."""
    variables = {name: value for name, value in {**os.environ, **changes}.items() if value is not None}
    command = [*prefix, sys.executable, "-c", code]
    return subprocess.run(command, env=variables, check=True, capture_output=True, text=True).stdout.split()


def test_user_name_and_home_are_set_if_missing() -> None:
    without = dict.fromkeys(("HOME", "USER", "LOGNAME", "LNAME", "USERNAME", "XDG_CACHE_HOME", "MPLCONFIGDIR"))
    name, home, cache = probe(PROBE.format(names=["XDG_CACHE_HOME"]), as_nameless_user(), **without)
    assert (name, Path(home).name, cache) == ("uid-12345", "gtvray-12345", "None")
    assert Path(home).stat().st_mode & 0o777 == 0o700


@pytest.mark.slow
def test_monai_and_torch_import_for_a_nameless_user() -> None:
    without = dict.fromkeys(("HOME", "USER", "LOGNAME", "LNAME", "USERNAME"))
    code = "import gtvray, monai.config, torch._dynamo.config, torch._inductor.runtime.cache_dir_utils as folders"
    words = probe(f"{code}; print(folders.cache_dir())", as_nameless_user(), TORCHINDUCTOR_CACHE_DIR=None, **without)
    assert "uid-12345" in words[0]


@pytest.mark.parametrize("mode", [0o500, 0o000])
def test_read_only_home_moves_caches_and_token(tmp_path: Path, mode: int) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=mode)
    code = "from gtvray.runtime.tokens import ensure_token, use_token; use_token(); ensure_token(); "
    code += PROBE.format(names=["XDG_CACHE_HOME", "MPLCONFIGDIR", "RAY_AUTH_TOKEN_PATH"])
    without = dict.fromkeys(
        ("XDG_CACHE_HOME", "MPLCONFIGDIR", "XDG_CONFIG_HOME", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    )
    _, reported_home, *moved = probe(code, as_nameless_user(), **without, HOME=str(home))
    assert reported_home == str(home)
    assert [Path(path).name for path in moved] == ["cache", "matplotlib", "auth_token"]
    assert {Path(path).parent.name for path in moved} == {"gtvray-12345"}
    assert Path(moved[-1]).stat().st_mode & 0o777 == 0o600
    Path(moved[-1]).unlink()


def test_only_telemetry_changes_in_a_complete_environment(tmp_path: Path) -> None:
    code = "import os; before = set(os.environ.items()); import gtvray; "
    code += "print(*sorted(set(os.environ.items()) - before))"
    clean = dict.fromkeys(TELEMETRY_OFF) | {"HOME": str(tmp_path), "XDG_CACHE_HOME": None, "MPLCONFIGDIR": None}
    words = probe(code, [], **clean)
    assert " ".join(words) == " ".join(str(item) for item in sorted(TELEMETRY_OFF.items()))


def test_variables_set_by_the_user_are_kept() -> None:
    assert probe(PROBE.format(names=["MLFLOW_DISABLE_TELEMETRY"]), [], MLFLOW_DISABLE_TELEMETRY="false")[-1] == "false"


def test_can_write_checks_the_nearest_existing_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert can_write(tmp_path / "a" / "b")
    assert can_write(tmp_path / "file")
    assert not can_write(tmp_path / "file" / "a")


@pytest.mark.parametrize("taken", ["link", "file", "loose"])
def test_private_folder_belongs_to_the_user(tmp_path: Path, taken: str) -> None:
    folder = tmp_path / "folder"
    if taken == "link":
        folder.symlink_to(tmp_path)
    elif taken == "file":
        folder.touch()
    else:
        folder.mkdir(mode=0o777)
    assert environment._is_private(folder) == (taken == "loose")
    assert taken != "loose" or folder.stat().st_mode & 0o777 == 0o700


def test_long_ray_folder_gets_a_short_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = tmp_path / ("x" * 120)
    scratch.mkdir()
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(scratch))
    monkeypatch.setattr(temporary.tempfile, "tempdir", None)
    monkeypatch.setattr(environment, "CHANGED", {})
    folder = Path(temporary.ray_temp_folder())
    assert len(str(folder)) <= temporary.MAX_TEMP_BYTES + len(f"/r{os.getpid()}")
    assert folder.parent.resolve() == scratch
    assert folder.parent.parent == private_folder()
    # Child processes create sockets in TMPDIR too.
    assert (os.environ["TMPDIR"], environment.CHANGED) == (str(folder.parent), {"TMPDIR": str(scratch)})
    folder.parent.unlink()


@pytest.mark.parametrize("uid", [0, 1000, 12345, 4294967294])
def test_link_is_short_enough_for_every_user_id(uid: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    linked: list[Path] = []
    monkeypatch.setattr(temporary, "private_folder", lambda: Path(f"/tmp/gtvray-{uid}"))
    monkeypatch.setattr(temporary, "_link", lambda link, folder: linked.append(link))
    assert temporary._short_link(str(tmp_path / ("x" * 120))) == str(linked[0])
    assert len(str(linked[0])) <= temporary.MAX_TEMP_BYTES


def test_short_ray_folder_is_used_directly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    for value, folder in (("/tmp", "/tmp"), ("/etc/passwd/none", "/tmp"), ("/var/tmp", "/var/tmp")):
        monkeypatch.setenv("TMPDIR", value)
        monkeypatch.setattr(temporary.tempfile, "tempdir", None)
        assert temporary.ray_temp_folder() == f"{folder}/r{os.getpid()}"


def test_existing_file_instead_of_the_link_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/var/tmp")
    with pytest.raises(ResourceError, match="already exists"):
        temporary._link(tmp_path / "link", str(tmp_path))


def test_a_private_file_is_complete_and_written_once(tmp_path: Path) -> None:
    path = tmp_path / "token"
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: create_private_file(path, str(number) * 64), range(8)))
    text = path.read_text()
    assert text == text[0] * 64
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]
    create_private_file(path, "another")
    assert path.read_text() == text
