"""What MkDocs does not know about this project."""

import re

ROLE = re.compile(r":(?:class|func|meth|mod|attr|data):<code>~?")


def on_page_content(html: str, **_: object) -> str:
    """Shows what docstrings mark with a role, such as ``:class:``, as code."""
    return ROLE.sub("<code>", html)
