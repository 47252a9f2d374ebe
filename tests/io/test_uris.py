"""URIs: recognised and refused where only a path works; folders copied to and from a store."""

from __future__ import annotations

from pathlib import Path

import pytest

from gtvray.errors import InputError, NotFoundError
from gtvray.io import Workspace, check_outputs, download_folder, is_uri, require_path, upload_folder


@pytest.mark.parametrize("uri", ["s3://bucket/runs", "gs://b", "memory://x", "file:///tmp/x", "S3://b/x"])
def test_uri_is_refused_where_a_path_is_needed(uri: str) -> None:
    for form in (uri, Path(uri)):
        assert is_uri(form)
        with pytest.raises(InputError, match="a path is needed") as caught:
            require_path(form)
        if "///" not in uri:
            assert caught.value.fields["where"] == uri
    with pytest.raises(InputError, match="a path is needed"):
        Workspace(Path(uri))
    with pytest.raises(InputError, match="a path is needed"):
        check_outputs([Path(uri)])


def test_file_uri_is_refused_with_the_path_to_write() -> None:
    with pytest.raises(InputError) as caught:
        require_path("file:///tmp/my%20runs")
    assert caught.value.fields["do"] == "write it as /tmp/my runs"


@pytest.mark.parametrize("path", ["runs", "/data/s3://x", "./s3:/x", "C:/data", "C:\\data", "a:b", "köln:/x", ""])
def test_path_is_no_uri(path: str) -> None:
    assert not is_uri(path)
    require_path(path)


def test_folder_is_copied_to_an_empty_location_and_back(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "a" / "b").mkdir(parents=True)
    (source / "a" / "b" / "manifest").write_bytes(b"1")
    (source / "z ü").write_bytes(b"")
    (source / "scan.nii.gz").write_bytes(b"compressed already")
    uri = (tmp_path / "store").as_uri()
    upload_folder(source, uri, last="a/b/manifest")
    assert (tmp_path / "store" / "scan.nii.gz").read_bytes() == b"compressed already", "stored byte for byte"
    (tmp_path / "back").mkdir()
    download_folder(uri, tmp_path / "back")
    assert (tmp_path / "back" / "scan.nii.gz").read_bytes() == b"compressed already"
    assert (tmp_path / "back" / "a" / "b" / "manifest").read_bytes() == b"1"
    assert (tmp_path / "back" / "z ü").read_bytes() == b""
    with pytest.raises(InputError, match="not empty"):
        upload_folder(source, uri, last="a/b/manifest")
    with pytest.raises(NotFoundError, match="no files"):
        download_folder((tmp_path / "none").as_uri(), tmp_path / "back")


def test_unknown_scheme_is_refused_with_those_that_work(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not supported") as caught:
        download_folder("ftp://host/folder", tmp_path)
    assert "s3://" in caught.value.fields["expected"]
