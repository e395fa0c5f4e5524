"""Server-side calibration: the server trains the present layers to work together (LW-FedSSL v3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from fedssl.client.step_costs import CostBook, StepKey
from fedssl.client.training_loop import LoopReport, train_epochs
from fedssl.data.datasets import SampleSet
from fedssl.protocol.parts import PartitionedModel
from fedssl.utils.seeding import derive_seed, torch_generator
from layerwise import Stage
from ssl_methods import OptimizerFactory, check_at_least, check_optimizer


@dataclass(frozen=True)
class Calibration:
    """End-to-end training of all present layers and heads on unlabelled auxiliary images that no client holds.

    Time and duration are our reading: the paper's third version has the mechanism but gives no details.

    Args:
        epochs: Passes over the auxiliary images; ``None``: as many as a client's local epochs.
        batch_size: Images a step; ``None``: the clients'.
        when: Time of calibration: after every ``round``, or after the last round of every ``stage``.
        optimizer: Optimizer of the calibration; ``None`` takes that of the clients. Its learning rate follows the
            clients' schedule.
    """

    epochs: int | None = None
    batch_size: int | None = None
    when: Literal["round", "stage"] = "round"
    optimizer: OptimizerFactory | None = None

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 2)):
            if (value := getattr(self, name)) is not None:
                check_at_least(least, **{f"calibration.{name}": value})
        if self.optimizer:
            check_optimizer("calibration.optimizer", self.optimizer)
        if self.when not in ("round", "stage"):
            raise ValueError(f"calibration.when must be 'round' or 'stage', got {self.when!r}")

    def check(self, auxiliary: SampleSet | None) -> None:
        """Refuse to calibrate without images.

        Raises:
            ValueError: There are fewer than two.
        """
        if auxiliary is None or len(auxiliary) < 2:
            raise ValueError(
                "calibration needs auxiliary images that no client holds: set auxiliary_fraction above 0 or "
                "name an auxiliary_dataset"
            )

    def due(self, trained: bool, last_of_stage: bool) -> bool:
        """Tell if the server calibrates: after every round with trained clients, or at the end of every stage."""
        return trained if self.when == "round" else last_of_stage

    def run(
        self,
        model: PartitionedModel,
        stage: Stage,
        images: SampleSet | None,
        round_: int,
        seed: int,
        lr_factor: float = 1.0,
    ) -> LoopReport:
        """Calibrate the global model in place.

        Raises:
            NonFiniteLossError: The loss is not finite.
        """
        assert images is not None
        assert self.epochs is not None
        assert self.batch_size is not None
        method = model.method
        model.attach_whole(stage)
        # Queues and the like of the last calibration are in no checkpoint: a resumed run would differ from this one.
        model.client_state.reset()
        method.generator = torch_generator(seed, "calibrate-augment", round_, device=method.device)
        shuffle = torch_generator(seed, "calibrate-shuffle", round_)
        # The loop takes the optimizer from the method, so the server's is lent to it and given back.
        clients_optimizer, method.optimizer_factory = (
            method.optimizer_factory,
            self.optimizer or method.optimizer_factory,
        )
        try:
            with torch.random.fork_rng():
                # Dropout layers draw from the global generator, as in local training.
                torch.manual_seed(derive_seed(seed, "calibrate", round_))
                # A book that is thrown away: costs are those of clients, and the server's own steps stay out of them.
                book, key, size = CostBook(), StepKey.at(stage), self.batch_size
                return train_epochs(method, images, self.epochs, size, shuffle, book, key, lr_factor=lr_factor)
        finally:
            method.optimizer_factory = clients_optimizer
