"""Who says what in a text in the form of a play."""

from __future__ import annotations

import re

HEADING = re.compile(r"(?:\A\n*|\n\n+)([^\n:]{1,40}):\n")
"""A name and a colon on a line of its own, after an empty line or at the beginning."""

NOBODY = "(nobody)"
"""Says what no name stands above."""


def speeches(text: str) -> dict[str, str]:
    """All that each speaker says, one speech after the other on new lines, without the names.

    Args:
        text: Speeches below lines ``NAME:``, with empty lines between them. In a text without such lines
            :data:`NOBODY` says everything.

    Returns:
        By speaker, in the order in which they begin to speak.
    """
    nobody, *rest = HEADING.split(text)
    found = {NOBODY: [nobody]} if nobody.strip() else {}
    for speaker, speech in zip(rest[::2], rest[1::2], strict=True):
        found.setdefault(speaker, []).append(speech.strip("\n"))
    return {speaker: "\n".join(said) for speaker, said in found.items()}
