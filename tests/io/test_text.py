"""Text files from other systems: byte-order marks and all line endings are read, other encodings are rejected."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from gtvray.config import load_config, load_sweep
from gtvray.errors import ConfigError, InputError, NotFoundError
from gtvray.io import append_json_line, decode_text, read_json, read_json_lines, read_text
from gtvray.serving.arguments import read_token

TEXT = 'name: "Müller"\nvalues: [1, 2]\n'
UTF8: dict[str, bytes] = {
    "plain": TEXT.encode(),
    "byte-order mark": TEXT.encode("utf-8-sig"),
    "CRLF": TEXT.replace("\n", "\r\n").encode(),
    "CR": TEXT.replace("\n", "\r").encode(),
    "mark and CRLF": TEXT.replace("\n", "\r\n").encode("utf-8-sig"),
}
OTHERS: dict[str, tuple[bytes, str]] = {
    "UTF-16 little-endian": (b"\xff\xfe" + TEXT.encode("utf-16-le"), "UTF-16"),
    "UTF-16 big-endian": (b"\xfe\xff" + TEXT.encode("utf-16-be"), "UTF-16"),
    "UTF-16 without a mark": (TEXT.replace("ü", "u").encode("utf-16-le"), "UTF-16 without a byte-order mark"),
    "UTF-32": (TEXT.encode("utf-32"), "UTF-32"),
    "Latin-1": (TEXT.encode("latin-1"), "byte 0xfc in line 1, as in Latin-1"),
    "mark and Latin-1": (b"\xef\xbb\xbfa\n\nM\xfcller", "byte 0xfc in line 3, as in Latin-1"),
    "GBK": ("名: 1\n".encode("gbk"), "GBK"),
    "gzip": (gzip.compress(TEXT.encode()), "a gzip stream of text"),
    "zip": (b"PK\x03\x04\xff\x00", "a zip archive"),
    "noise": (b"\x07\x81\x00\x07\x00\x03", "binary data"),
}


@pytest.mark.parametrize("sort", UTF8)
def test_utf8_with_any_line_endings(tmp_path: Path, sort: str) -> None:
    (tmp_path / "a.txt").write_bytes(UTF8[sort])
    assert read_text(tmp_path / "a.txt") == TEXT == decode_text(UTF8[sort], "here")


@pytest.mark.parametrize("sort", OTHERS)
def test_other_encodings_are_rejected_by_name(tmp_path: Path, sort: str) -> None:
    content, words = OTHERS[sort]
    (tmp_path / "a.json").write_bytes(content)
    for read in (read_text, read_json, read_json_lines):
        with pytest.raises(InputError, match="not UTF-8 text") as caught:
            read(tmp_path / "a.json")
        assert words in caught.value.fields["found"]
        assert "UTF-8" in caught.value.fields["do"]
        assert caught.value.fields["where"] == str(tmp_path / "a.json")


def test_missing_file_and_folder_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        read_text(tmp_path / "none")
    with pytest.raises(NotFoundError) as caught:
        read_text(tmp_path)
    assert caught.value.fields["found"] == "a folder"
    (tmp_path / "empty").write_bytes(b"\xef\xbb\xbf")
    assert read_text(tmp_path / "empty") == ""


@pytest.mark.parametrize("encode", [lambda s: s.encode("utf-8-sig"), lambda s: s.replace("\n", "\r\n").encode()])
def test_windows_text_files_are_read(tmp_path: Path, encode: object) -> None:
    def put(name: str, text: str) -> Path:
        (tmp_path / name).write_bytes(encode(text))  # type: ignore[operator]
        return tmp_path / name

    assert read_json(put("a.json", '{\n "a": 1\n}\n')) == {"a": 1}
    assert load_config(put("a.yaml", "training:\n  epochs: 7\n")).training.epochs == 7
    sweep = load_sweep(put("s.yaml", "trials: 3\nspace:\n  optimizer.lr: {low: 1.0e-4, high: 1.0e-2, log: true}\n"))
    assert sweep.trials == 3
    assert read_token(put("token", "secret\n")) == "secret"


def test_byte_order_mark_does_not_hide_the_first_line(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.jsonl"
    lines = "".join(json.dumps({"n": n, "text": "\u2028"}, ensure_ascii=False) + "\r\n" for n in range(2))
    ledger.write_bytes(lines.encode("utf-8-sig"))
    append_json_line(ledger, {"n": 2, "text": "\u2028"})
    assert read_json_lines(ledger) == [{"n": n, "text": "\u2028"} for n in range(3)]


def test_zero_blocks_are_skipped_and_other_encodings_are_rejected(tmp_path: Path) -> None:
    """Zero blocks come from a power loss and must not hide other lines; re-encoded lines must not be lost silently."""
    ledger = tmp_path / "ledger.jsonl"
    ledger.write_bytes(b'{"n": 1}\n\0\0\0\0\n\0\0{"n": 2}\n{"n": 3')
    assert read_json_lines(ledger) == [{"n": 1}, {"n": 2}]
    for encoding, found in (("utf-16-le", "UTF-16 without"), ("latin-1", "Latin-1")):
        ledger.write_bytes(
            '{"who": "é"}\n'.encode(encoding) if encoding == "latin-1" else '{"n": 1}\n'.encode(encoding)
        )
        with pytest.raises(InputError) as caught:
            read_json_lines(ledger)
        assert found in caught.value.fields["found"]
    # PowerShell appends UTF-16 with >>.
    ledger.write_bytes(b'{"n": 1}\n' + '{"n": 2}\r\n'.encode("utf-16-le"))
    with pytest.raises(InputError):
        read_json_lines(ledger)


def test_config_in_another_encoding_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes("training:\n  epochs: 7 # für\n".encode("latin-1"))
    with pytest.raises(ConfigError, match="UTF-8") as caught:
        load_config(tmp_path / "a.yaml")
    assert "Latin-1" in caught.value.fields["found"]
    (tmp_path / "token").write_bytes("s".encode("utf-16"))
    with pytest.raises(ConfigError, match="token file") as caught:
        read_token(tmp_path / "token")
    assert "UTF-16" in caught.value.fields["found"]
