"""A report in a real browser, without a window."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PROBE = """<!doctype html><title>probe</title><iframe src="report.html" width="{width}" height="900"></iframe>
<script>
onload = () => {{
  const page = document.querySelector("iframe").contentDocument, root = page.documentElement;
  const seen = [...page.querySelectorAll("svg")].filter(svg => svg.getBoundingClientRect().width > 200);
  document.body.append(`overflow ${{root.scrollWidth - root.clientWidth}} figures ${{seen.length}}`);
}};
</script>"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def chromium() -> str:
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no chromium here")
    return found


def opened(chromium: str, page: Path, profile: Path) -> tuple[str, list[str]]:
    """What the page has become, and what the browser's console said."""
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--allow-file-access-from-files"]
    logging = ["--enable-logging=stderr", "--v=0", "--virtual-time-budget=5000", f"--user-data-dir={profile}"]
    command = [chromium, *flags, *logging, "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout, re.findall(r"CONSOLE.*", done.stderr)


def test_a_console_error_would_be_seen(chromium: str, tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text("<!doctype html><script>undefinedFunction()</script>")
    _, console = opened(chromium, page, tmp_path / "profile")
    assert any("undefinedFunction" in line for line in console)


@pytest.mark.parametrize("width", [390, 1400])
def test_the_report_opens_without_complaints_and_fits(chromium: str, run: Path, width: int, tmp_path: Path) -> None:
    shutil.copy(run / "report.html", tmp_path / "report.html")
    probe = tmp_path / "probe.html"
    probe.write_text(PROBE.format(width=width))
    dom, console = opened(chromium, probe, tmp_path / "profile")
    assert console == []
    assert "overflow 0 figures 18" in dom
