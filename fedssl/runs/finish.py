"""End of a run: its results, its encoder and its report, in the run folder and for the user."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from fedssl.data.disclosure import may_show_images
from fedssl.data.images import ImageData
from fedssl.runs.result_tables import print_results, print_shortfall
from fedssl.runs.results import accuracy_over_simulated_time, collect_results, write_results
from fedssl.runs.run_folder import METRICS, RESULTS
from fedssl.training.federated import FederatedSSL
from fedssl.training.pretraining import Pretraining
from fedssl.training.progress import working
from linear_eval import EvaluatedModule


def finish_test(module: EvaluatedModule, folder: Path, seconds: float) -> None:
    """Store the results of an evaluation in ``test.json``, and print them."""
    results = collect_results(module, seconds)
    write_results(results, folder / "test.json")
    print_results(results, folder)
    print_shortfall(results)


def finish_fit(
    module: Pretraining, data: Any, folder: Path, seconds: float, changes: dict[str, str], show_images: bool | None
) -> None:
    """Export the encoder of a trained and evaluated module, store and print its results, and draw its report.

    Args:
        module: Trained and evaluated module.
        data: Data module of the run.
        folder: Run folder.
        seconds: Wall time.
        changes: Settings that changed on a resume, with their history.
        show_images: Include images of the data in the report; ``None`` includes those of public data sets only.
    """
    results = collect_results(module, seconds)
    _export(module, folder / "encoder")
    over_time = accuracy_over_simulated_time(folder / METRICS)
    results |= {"accuracy_over_simulated_time": over_time} if over_time else {}
    results |= {"resumed_with_changes": changes} if changes else {}
    if isinstance(module, FederatedSSL) and module.settings.server.pace:
        from fedssl.runs.pace_plot import plot_pace  # its drawing library takes a while to load

        plot_pace(folder / METRICS, folder / "pace.png")
    write_results(results, folder / RESULTS)
    print_results(results, folder)
    _report(module, data, folder, show_images)
    print_shortfall(results)


def _export(module: Pretraining, folder: Path) -> None:
    """Write the encoder; one that is too shallow for timm, after an early end, must not cost the results."""
    try:
        module.export(folder)
    except ValueError as error:
        if not module.progress or module.progress.finished:
            raise
        print(f"no encoder: {error}", file=sys.stderr)


def _report(module: Pretraining, data: Any, folder: Path, show_images: bool | None) -> None:
    """Draw the report; the results are already on disk, so a failure here is printed and the run succeeds."""
    from fedssl.runs.report.deliver import deliver_report  # its drawing libraries take a while to load

    try:
        with working("drawing the report"):
            page = deliver_report(module, data, folder, module.trainer.loggers, show_images)
        hidden = show_images is None and isinstance(data, ImageData) and not may_show_images(data)
        print(f"report: {page}" + " (without your images; --show_images true shows them)" * hidden)
    except Exception as error:
        if os.environ.get("FEDSSL_DEBUG"):
            raise
        print(f"no report: {error} (FEDSSL_DEBUG=1 shows where)", file=sys.stderr)
