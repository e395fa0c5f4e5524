"""Tables for a terminal and as Markdown."""

import io

import pytest
from rich.console import Console

from fedssl.utils.tables import Table

TABLE = Table(["[/a] name", "some | number"], [["[x] | y", "1.00 ± 0.50 (50 %)"]], "title", "[caption]")


@pytest.mark.parametrize("width", [None, 80, 160])
def test_a_terminal_shows_every_text_as_it_is(width: int | None) -> None:
    console = Console(file=io.StringIO(), width=160)
    console.print(TABLE.rich(width))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert all(each in text for each in ("title", "[/a] name", "[x] | y", "± 0.50", "(50 %)", "[caption]"))
    assert ("1.00 ± 0.50 (50 %)" in text) == (width != 80)


def test_markdown() -> None:
    assert TABLE.markdown() == [
        "| [/a] name | some \\| number |",
        "| --- | --- |",
        "| [x] \\| y | 1.00 ± 0.50 (50 %) |",
    ]
