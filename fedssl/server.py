"""The server's side of a federation: tasks out, results in, one step of the global model a round."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim import Optimizer

from fedssl.aggregation import Aggregation
from fedssl.calibration import Calibration
from fedssl.checkpoints import check_same
from fedssl.datasets import ImageSet
from fedssl.intake import Intake
from fedssl.ledger import Ledger
from fedssl.messages import Failure, Result, Task, Tensors, content_id, flatten, num_bytes
from fedssl.model import SplitModel
from fedssl.participation import Cohort, draw_cohort
from fedssl.round_report import RoundReport
from fedssl.seeding import derive_seed, numpy_generator
from layerwise import Scheme, Stage, renew, transfer_weights


class AllClientsFailedError(RuntimeError):
    """Clients took part in a round but none gave a usable result."""


class Server:
    """Server logic without any engine: the in-process simulation and a network drive it alike.

    A round is :meth:`begin_round`, :meth:`make_task` for every participant, :meth:`absorb`.

    Args:
        model: The global model.
        scheme: Cuts the run into stages.
        rounds: Communication rounds of the run.
        num_clients: Clients of the federation.
        cohort_size: Clients drawn each round.
        dropout: Probability that a drawn client cannot be reached.
        aggregation: Combines the clients' results.
        optimizer: Steps the global model along ``global - aggregate``; SGD with lr 1 is FedAvg.
        calibration: Server-side calibration, if any.
        auxiliary: The unlabelled images it trains on.
        seed: Seed of the run.

    Raises:
        ValueError: The scheme does not fit the encoder or the rounds, or calibration has no images.
    """

    def __init__(
        self,
        model: SplitModel,
        scheme: Scheme,
        rounds: int,
        num_clients: int,
        cohort_size: int,
        dropout: float,
        aggregation: Aggregation,
        optimizer: Optimizer,
        calibration: Calibration | None,
        auxiliary: ImageSet | None,
        seed: int,
    ) -> None:
        if calibration and (auxiliary is None or len(auxiliary) < 2):
            raise ValueError(
                "calibration needs auxiliary images that no client holds: set auxiliary_fraction above 0 or "
                "name an auxiliary_dataset"
            )
        self.model = model
        self.scheme = scheme
        self.stages = scheme.stages(len(model.encoder.blocks), rounds)
        self.num_clients = num_clients
        self.cohort_size = cohort_size
        self.dropout = dropout
        self.aggregation = aggregation
        self.optimizer = optimizer
        self.calibration = calibration
        self.auxiliary = auxiliary
        self.seed = seed
        self.round = 0
        self.ledger = Ledger()
        self.failed_updates = 0
        self._entered = -1
        self._holdings: dict[int, dict[str, str]] = {}
        self._ids: dict[str, str] = {}

    @property
    def rounds(self) -> int:
        """Communication rounds of the run."""
        return sum(stage.rounds for stage in self.stages)

    @property
    def done(self) -> bool:
        """Whether all rounds are over."""
        return self.round >= self.rounds

    @property
    def stage(self) -> Stage:
        """The stage of the current round; after the last round, the last stage."""
        end = 0
        for stage in self.stages:
            end += stage.rounds
            if self.round < end:
                return stage
        return self.stages[-1]

    def begin_round(self) -> Cohort:
        """Grows the model if a stage begins, and draws this round's clients."""
        self._enter(self.stage)
        self._cohort = draw_cohort(
            self.num_clients,
            self.cohort_size,
            self.dropout,
            numpy_generator(self.seed, "cohort", self.round),
        )
        self._down_bytes = 0
        return self._cohort

    def make_task(self, client_id: int) -> Task:
        """What this client gets: the active part, and the frozen parts that it does not hold yet."""
        stage, held = self.stage, self._holdings.setdefault(client_id, {})
        needed = {name: self._part_id(name) for name in self.model.frozen_names(stage)}
        missing = [name for name, content in needed.items() if held.get(name) != content]
        task = Task(
            client_id,
            self.round,
            stage,
            self.model.read(self.model.trained_names(stage)),
            needed,
            self.model.read(missing),
        )
        held.update(needed)
        sent = num_bytes(task.active) + num_bytes(task.frozen)
        self.ledger.sent(client_id, sent)
        self._down_bytes += sent
        return task

    def absorb(self, results: Iterable[Result | Failure], step: Callable[[], Any] | None = None) -> RoundReport:
        """Ends the round: aggregates, steps the server optimizer, calibrates.

        Args:
            results: One for every participant, in ascending order of client id. They are taken one at a
                time, so a generator may reuse one model for all clients.
            step: Steps the server optimizer; ``optimizer.step`` unless a driver passes its own wrapper.

        Raises:
            AllClientsFailedError: Clients took part and failed, and none gave a usable result. The global model is as
                it was before the round. A round of clients that only had too few images counts as an empty one.
        """
        names = self.model.trained_names(self.stage)
        reference = flatten(self.model.read(names))
        intake = Intake(reference, self.aggregation)
        for result in results:
            accepted = intake.take(result)
            if accepted:
                self.ledger.received(accepted, num_bytes(accepted.parts))
        if intake.trained:
            self._set_gradients(names, self.aggregation.finish())
            for key, counter in intake.counters.items():
                reference[key].copy_(counter)
        elif any(not failure.skipped for failure in intake.failures):
            raise AllClientsFailedError(f"round {self.round}: no usable update; {intake.reasons()}")
        (step or self.optimizer.step)()
        self.optimizer.zero_grad(set_to_none=True)
        return self._end_round(intake, self._calibrate(bool(intake.trained)))

    @torch.no_grad()
    def _set_gradients(self, names: list[str], aggregate: Tensors) -> None:
        """Gives ``global - aggregate`` as gradient to the server optimizer; buffers take the aggregate."""
        for name in names:
            module = self.model.modules[name]
            parameters = dict(module.named_parameters())
            for key, own in module.state_dict().items():
                value = aggregate.get(f"{name}/{key}")
                if key in parameters and value is not None:
                    parameters[key].grad = own - value
                elif value is not None:
                    own.copy_(value)

    def _calibrate(self, trained: bool) -> float | None:
        last_of_stage = self.round + 1 == sum(s.rounds for s in self.stages[: self.stage.index + 1])
        if not self.calibration or not self.calibration.due(trained, last_of_stage):
            return None
        assert self.auxiliary is not None
        report = self.calibration.run(self.model, self.stage, self.auxiliary, self.round, self.seed)
        self._ids = {}
        return report.loss

    def _end_round(self, intake: Intake, calibration_loss: float | None) -> RoundReport:
        self.failed_updates += len(intake.failures)
        report = RoundReport(
            self.round,
            self.stage.index,
            tuple(intake.trained),
            self._cohort.dropped,
            tuple(intake.failures),
            intake.mean_loss(),
            self._down_bytes,
            intake.up_bytes,
            intake.macs,
            intake.activation_bytes,
            calibration_loss,
        )
        self.round += 1
        return report

    def _enter(self, stage: Stage) -> None:
        self.model.encoder.depth = stage.depth
        if stage.index == self._entered:
            return
        if stage.index > 0 and self.scheme.weight_transfer:
            transfer_weights(self.model.encoder, self.stages[stage.index - 1], stage)
        if stage.index > 0 and self.scheme.renew_heads:
            for name in self.model.heads:
                renew(self.model.modules[name], derive_seed(self.seed, name, stage.index))
        self._entered = stage.index
        self._ids = {}

    def _part_id(self, name: str) -> str:
        if name not in self._ids:
            self._ids[name] = content_id(self.model.read([name])[name])
        return self._ids[name]

    def state_dict(self) -> dict[str, Any]:
        """Everything but the weights and the optimizer, in plain types."""
        return {
            "round": self.round,
            "entered": self._entered,
            "holdings": {client: dict(held) for client, held in self._holdings.items()},
            "ledger": self.ledger.state_dict(),
            "failed_updates": self.failed_updates,
            "settings": self.settings(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`; the weights must have been restored before.

        Raises:
            ValueError: The checkpoint belongs to a run with other stages, clients or seed.
        """
        check_same(state["settings"], self.settings())
        self.round, self._entered = state["round"], state["entered"]
        self._holdings = {client: dict(held) for client, held in state["holdings"].items()}
        self.ledger.load_state_dict(state["ledger"])
        self.failed_updates = state["failed_updates"]
        self.model.encoder.depth = self.stages[max(self._entered, 0)].depth
        self._ids = {}

    def settings(self) -> dict[str, Any]:
        """Settings that a resumed run must share with its checkpoint."""
        return {
            "scheme": self.scheme.name,
            "rounds per stage": [stage.rounds for stage in self.stages],
            "blocks per stage": [len(stage.present) for stage in self.stages],
            "clients": self.num_clients,
            "seed": self.seed,
        }
