"""``report.html`` of one run."""

from __future__ import annotations

from collections.abc import Sequence

from fedssl.files import write_atomically
from fedssl.report import summary
from fedssl.report.page import Section, build_page
from fedssl.report.record import RunRecord
from fedssl.report.sections import run_sections
from fedssl.run_progress import shortfall

REPORT = "report.html"


def write_run_report(record: RunRecord) -> Sequence[Section]:
    """Draws ``report.html`` into the folder of a run, from what else is there.

    Returns:
        What stands on the page.
    """
    results, sections = record.results, run_sections(record)
    page = build_page(
        title=record.name[0].upper() + record.name[1:] + (" (unfinished)" if shortfall(results) else ""),
        subtitle=_subtitle(record),
        summary=summary.sentence(record),
        facts=summary.facts(record),
        sections=sections,
        footer=f"Run {record.folder.resolve().name}, fedssl {results['versions'].get('fedssl', '')}, "
        f"commit {results['commit'] or 'unknown'}, seed {results['seed']}.",
    )
    write_atomically(record.folder / REPORT, lambda path: path.write_text(page, encoding="utf-8"))
    return sections


def _subtitle(record: RunRecord) -> str:
    results = record.results
    parts = [results["encoder"], f"on {record.config['data']['init_args']['dataset']}"]
    if record.federated:
        parts.append(f"{results['clients']} clients, {results['clients_per_round']} a round")
        done = str(results["rounds"]) + (f" of {results['rounds_planned']}" if shortfall(results) else "")
        parts.append(f"{done} rounds of {results['local_epochs']} local epochs")
    return " · ".join([*parts, f"seed {results['seed']}"])
