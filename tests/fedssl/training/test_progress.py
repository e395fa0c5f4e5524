"""What a user sees while a run is at work."""

import io
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from pytorch_lightning import LightningModule, Trainer
from rich.console import Console
from torch.optim import AdamW

from fedssl.data.images import FederatedData
from fedssl.server.calibration import Calibration
from fedssl.server.participation import Cohort
from fedssl.training.federated import FederatedSSL
from fedssl.training.progress import RoundProgress, working
from layerwise import EncoderSpec, LayerWise
from ssl_methods import DigitsViews

pytestmark = [pytest.mark.filterwarnings(f"ignore:.*{text}.*") for text in ("LeafSpec", "transfer_batch_to_device")]


def federated(spec: EncoderSpec, method: Any, **settings: Any) -> FederatedSSL:
    return FederatedSSL(spec, method, DigitsViews(), partial(AdamW, lr=1e-3), LayerWise(), 3, seed=1, **settings)


@pytest.fixture
def shown(vit_spec: EncoderSpec, methods: dict[str, Any]) -> Any:
    """Runs three rounds with a display and returns what it said."""

    def run(terminal: bool, verbose: bool) -> str:
        module = federated(vit_spec, methods["SimCLR"], dropout=0.5)
        display, text = RoundProgress(verbose), io.StringIO()
        display._console = Console(file=text, force_terminal=terminal, width=160, force_interactive=terminal)
        trainer = Trainer(
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            limit_val_batches=0,
            max_epochs=3,
            callbacks=[display],
        )
        trainer.fit(module, datamodule=FederatedData(clients=3, train_images=12, seed=0))
        return text.getvalue()

    return run


def test_outside_a_terminal_there_are_lines_and_no_bars(shown: Any) -> None:
    lines = shown(terminal=False, verbose=False).splitlines()
    assert [line.split(" stage ")[0] for line in lines] == ["1/3", "2/3", "3/3"]
    assert "stage 3/3" in lines[2]
    assert "\x1b" not in "".join(lines)


def test_a_line_shows_only_what_its_round_has_measured() -> None:
    display, text = RoundProgress(verbose=True), io.StringIO()
    display._console = Console(file=text, width=160)
    for epoch in range(4):
        metrics = {"eval/knn_top1": 79.9, "eval/perplexity": 3.0}
        trainer: Any = SimpleNamespace(
            current_epoch=epoch, max_epochs=4, callback_metrics=metrics, state=SimpleNamespace(fn="fit")
        )
        if epoch == 1:
            display.on_validation_end(trainer, LightningModule())
        display.on_train_epoch_end(trainer, LightningModule())
    assert text.getvalue().split("\n") == ["1/4 ", "2/4 kNN 79.9 %, perplexity 3.00", "3/4 ", "4/4 ", ""]


def test_verbose_says_why_clients_gave_nothing(shown: Any) -> None:
    text = shown(terminal=False, verbose=True)
    assert "dropped out" in text
    assert text.count("dropped out") == sum(
        int(part.split(",")[0]) for part in text.split("dropped ")[1:] if part[0].isdigit()
    )


def test_a_terminal_has_bars(shown: Any) -> None:
    text = shown(terminal=True, verbose=False)
    assert "rounds" in text
    assert "3/3" in text
    assert "stage 3/3" in text


@pytest.mark.parametrize("calibration", [None, Calibration(epochs=1)])
def test_the_second_bar_names_what_is_at_work(
    calibration: Calibration | None, vit_spec: EncoderSpec, methods: dict[str, Any]
) -> None:
    display = RoundProgress()
    display._console = Console(file=io.StringIO(), force_terminal=True, width=100)
    module = federated(vit_spec, methods["SimCLR"], calibration=calibration)
    trainer: Any = SimpleNamespace(current_epoch=4, max_epochs=10)
    module.federation = SimpleNamespace()
    display.on_train_start(trainer, module)
    progress = display._progress
    assert progress is not None
    steps = []
    for happens in (
        lambda: display.on_train_epoch_start(trainer, module),
        lambda: display._client_done(Cohort((2, 5), ()), 2),
        lambda: display._client_done(Cohort((2, 5), ()), 5),
        lambda: display.on_validation_start(trainer, module),
    ):
        happens()
        steps.append((progress.tasks[-1].description, progress.tasks[-1].total, progress.tasks[0].completed))
    display._stop()
    after = "calibration" if calibration else "aggregation"
    assert steps == [
        ("clients", None, 4),
        ("clients", 2, 4 + 1 / 3),
        (after, None, 4 + 2 / 3),
        ("kNN", None, 4 + 2 / 3),
    ]


def test_working_says_nothing_outside_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with working("drawing"):
        pass
    assert capsys.readouterr().err == ""
