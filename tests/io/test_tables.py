"""Tables as Markdown and as text."""

from __future__ import annotations

from gtvray.io import Table, format_value

TABLE = Table(("case", "DSC", "note"), [("a|b", 0.123456, None), ("two\nlines", 12.0, "yes")])


def test_markdown_aligns_numbers_right_and_escapes_separators() -> None:
    assert TABLE.markdown().splitlines() == [
        "| case | DSC | note |",
        "| --- | ---: | --- |",
        "| a\\|b | 0.12346 | - |",
        "| two lines | 12 | yes |",
    ]


def test_text_aligns_columns_and_escapes_markup() -> None:
    lines = Table(("case", "DSC"), [("[red]a", 0.5), ("longer name", 10.25)]).text().splitlines()
    assert lines[0] == "case           DSC"
    assert lines[2:] == ["[red]a         0.5", "longer name  10.25"]


def test_text_width_fits_the_cells_by_default() -> None:
    wide = Table(("a", "b"), [("x" * 300, "y" * 300)])
    assert len(wide.text().splitlines()) == 3
    assert max(map(len, wide.text(80).splitlines())) <= 80
    assert wide.text(80).count("x") == 300


def test_numeric_columns_may_have_gaps_and_percentages() -> None:
    assert Table(("a", "b", "c", "d"), [("1", "2", "-", "x"), ("1", "2 %", "1,000", "1")]).numeric == [
        False,
        True,
        True,
        False,
    ]


def test_empty_table() -> None:
    assert Table(("a",), []).markdown() == "None."
    assert Table(("a",), []).numeric == [False]


def test_format_value() -> None:
    assert [format_value(value) for value in (None, 1 / 3, [1.0, (2, "x")], True)] == [
        "-",
        "0.33333",
        "(1, (2, x))",
        "True",
    ]
