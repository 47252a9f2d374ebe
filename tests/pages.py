"""Parsing of HTML pages, and the check that they are self-contained."""

from __future__ import annotations

import re
from html.parser import HTMLParser

_VOID = {"meta", "img"}


class Page(HTMLParser):
    """Elements and table cells of a page.

    Attributes:
        tags: name and attributes of each element.
        open: elements that are not closed.
        rows: texts of the cells of each table row.
    """

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data

    def attributes(self, tag: str, name: str) -> list[str | None]:
        """Values of an attribute of all elements with a tag."""
        return [attrs.get(name) for found, attrs in self.tags if found == tag]


def assert_self_contained(text: str) -> Page:
    """Parse a page that must be well formed and must not fetch anything."""
    page = Page(text)
    assert page.open == []
    assert not {"link", "iframe", "object", "embed", "base"} & {tag for tag, _ in page.tags}
    named = [
        value or "" for _, attrs in page.tags for name, value in attrs.items() if name in ("src", "href", "srcset")
    ]
    assert all(value.startswith("data:image/") for value in named)
    assert not re.search(r"https?://|@import|url\(|fetch|XMLHttp", text)
    return page
