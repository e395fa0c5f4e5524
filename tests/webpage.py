"""What tests ask of every HTML page."""

from __future__ import annotations

import re
from collections import Counter
from html.parser import HTMLParser

VOID = {"meta", "link", "br", "img", "hr"}
REFERENCES = {"href", "src", "srcset", "data", "action", "poster"}


class Page(HTMLParser):
    """Reads a page and notes what is in it.

    Attributes:
        tags: How often each element occurs.
        headings: Texts of h1, h2 and h3.
        anchors: Links within the page, outside drawings.
        ids: Ids of elements.
        references: Everything an element refers to.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.headings: list[str] = []
        self.anchors: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        for key, value in attrs:
            if key == "id":
                self.ids.append(value or "")
            if key in REFERENCES:
                self.references.append(value or "")
                self.anchors += [value or ""] * (tag == "a")
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("h1", "h2", "h3"):
            self.headings.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("h1", "h2", "h3"):
            self.headings[-1] += data


def check_page(text: str) -> Page:
    """Refuses a page that is no proper HTML or that needs anything from elsewhere."""
    page = Page()
    page.feed(text)
    page.close()
    assert page.open == [], f"never closed: {page.open}"
    assert text.startswith("<!doctype html>")
    assert len(page.ids) == len(set(page.ids)), "an id occurs twice"
    inner = {reference[1:] for reference in page.references if reference.startswith("#")}
    assert inner <= set(page.ids), f"links lead nowhere: {inner - set(page.ids)}"
    assert all(reference.startswith(("#", "data:")) for reference in page.references)
    assert not re.search(r"https?:|@import", text.split("<pre>")[0])
    assert page.tags["script"] == 0
    return page
