"""Shared templates: pages are self-contained and escape their values."""

from __future__ import annotations

import pytest
from jinja2 import UndefinedError

from gtvray.io import Picture, Table, render_page

from ..pages import assert_self_contained

CONTEXT = {"title": "<b>T</b>", "notice": "a & b", "remarks": ["<i>"]}


def test_page_escapes_every_value() -> None:
    table = Table(("<u>head</u>", "n"), [("error", 1), ('"quoted" <s>', 2.5)], caption="<em>")
    text = render_page("gtvray.io", "table.html", table=table, **CONTEXT)
    page = assert_self_contained(text)
    for tag in ("<b>", "<i>", "<u>", "<s>", "<em>"):
        assert tag not in text
    assert page.rows == [["<u>head</u>", "n"], ["error", "1"], ['"quoted" <s>', "2.5"]]
    assert page.attributes("tr", "class") == [None, "error", None]
    assert page.attributes("td", "class") == ["n", "n"]
    assert page.attributes("th", "scope") == ["col", "col", "row", "row"]


def test_page_forbids_requests_and_follows_the_color_scheme() -> None:
    text = render_page("gtvray.io", "table.html", table=Table((), []), **CONTEXT)
    assert "Content-Security-Policy" in text
    assert "default-src &#39;none&#39;" in text or "default-src 'none'" in text
    assert "prefers-color-scheme:dark" in text
    assert "None." in text


def test_missing_variable_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="table"):
        render_page("gtvray.io", "table.html", **CONTEXT)


def test_picture_is_a_data_uri() -> None:
    assert Picture(b"\x00\x01", "png", "nothing").uri == "data:image/png;base64,AAE="
