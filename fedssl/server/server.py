"""The server's side of a federation: tasks out, results in, one step of the global model a round."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch.optim import Optimizer

from fedssl.data.datasets import SampleSet
from fedssl.devices import fleet_stages
from fedssl.protocol.messages import Failure, Result, Task, Tensors, content_id, flatten, num_bytes, part_of, unflatten
from fedssl.protocol.parts import SplitModel
from fedssl.server.aggregation import Aggregation
from fedssl.server.calibration import Calibration
from fedssl.server.client_stage import check_untied, client_stage, typical_choices
from fedssl.server.participation import Cohort, Participation
from fedssl.server.rounds import Ledger, OpenRound, RoundReport
from fedssl.server.selection import Outcome
from fedssl.server.updates import MAX_UPDATE, Intake, sample_update
from fedssl.utils.resources import Stopwatch
from fedssl.utils.saved_state import check_same, describe_optimizer
from fedssl.utils.seeding import derive_seed, torch_generator
from layerwise import BlockPerturbation, Scheme, Stage, grew, renew, transfer_weights

logger = logging.getLogger(__name__)


class AllClientsFailedError(RuntimeError):
    """Clients took part in a round but none, or too few, gave a usable result."""


class NonFiniteModelError(ArithmeticError):
    """The global model has NaN or infinite values at the end of a round."""


class Server:
    """Server logic without any engine: the in-process simulation and a network drive it alike.

    A round is :meth:`begin_round`, :meth:`make_task` for every participant, :meth:`absorb`.

    Args:
        model: The global model.
        scheme: Cuts the run into stages.
        rounds: Communication rounds of the run, at most.
        participation: Draws the clients of every round.
        aggregation: Combines the clients' results.
        optimizer: Steps the global model along ``global - aggregate``; SGD with lr 1 is FedAvg.
        calibration: Server-side calibration, if any.
        auxiliary: The unlabelled images it trains on.
        pace: Ends a stage before its last round once its blocks have converged; ``None`` never does.
        seed: Seed of the run.

    Attributes:
        current: What is noted of the round that runs, or ran last.
        quorum: Usable results that a round needs in which a client failed or was late; 0: one, if a client failed.
        max_update: Largest change of a tensor that a client may give, see :class:`fedssl.server.updates.Intake`.

    Raises:
        ValueError: The scheme does not fit the encoder or the rounds, no device can hold a stage, or calibration has no
            images.
    """

    def __init__(
        self,
        model: SplitModel,
        scheme: Scheme,
        rounds: int,
        participation: Participation,
        aggregation: Aggregation,
        optimizer: Optimizer,
        calibration: Calibration | None,
        auxiliary: SampleSet | None,
        pace: BlockPerturbation | None,
        seed: int,
    ) -> None:
        if calibration and (auxiliary is None or len(auxiliary) < 2):
            raise ValueError(
                "calibration needs auxiliary images that no client holds: set auxiliary_fraction above 0 or "
                "name an auxiliary_dataset"
            )
        scheme.check(model.encoder)
        aggregation.begin(participation, rounds)
        self.model = model
        self.scheme = scheme
        self.stages = fleet_stages(scheme, len(model.encoder.blocks), rounds, participation.fleet)
        check_untied(model, scheme, self.stages, participation, seed)
        self.participation = participation
        self.aggregation = aggregation
        self.optimizer = optimizer
        self.calibration = calibration
        self.auxiliary = auxiliary
        self.pace = pace
        self.seed = seed
        self.round = 0
        self.current = OpenRound()
        self.ledger = Ledger()
        self.times = Stopwatch()
        self.failed_updates = 0
        self.quorum = 0
        self.max_update = MAX_UPDATE
        self.stage_rounds: list[int] = [0] * len(self.stages)
        self._index = 0
        self._entered = -1
        self._holdings: dict[int, dict[str, str]] = {}
        self._ids: dict[str, str] = {}
        if participation.fleet:
            participation.fleet.check(self.least_stages())

    @property
    def done(self) -> bool:
        """Whether the last stage has ended."""
        return self._index >= len(self.stages)

    @property
    def stage(self) -> Stage:
        """The stage of the current round; after the last round, the last stage."""
        return self.stages[min(self._index, len(self.stages) - 1)]

    def open_stages(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Stages, numbered from 1, that have begun and not ended, and those that have not begun."""
        left = range(self._index, len(self.stages))
        begun = tuple(at + 1 for at in left if self.stage_rounds[at])
        return begun, tuple(at + 1 for at in left if not self.stage_rounds[at])

    def least_stages(self) -> list[Stage]:
        """The stages as the clients with the smallest shares get them, which tells what they cost at least."""
        return [typical_choices(self.scheme, stage, self.seed)[-1] for stage in self.stages]

    def begin_round(self) -> Cohort:
        """Grows the model if a stage begins, and draws this round's clients."""
        self._enter(self.stage)
        choices = typical_choices(self.scheme, self.stage, self.seed)
        self.current = OpenRound(self.participation.draw(self.round, *choices))
        return self.current.cohort

    def make_task(self, client_id: int) -> Task:
        """Make a client's task: the active part, the frozen parts that it does not hold yet, the rule's correction."""
        held = self._holdings.setdefault(client_id, {})
        share = self.participation.share(client_id, typical_choices(self.scheme, self.stage, self.seed))
        stage = client_stage(self.scheme, self.stage, share, client_id, self.round, self.seed)
        needed = {name: self._part_id(name) for name in self.model.frozen_names(stage)}
        missing = [name for name, content in needed.items() if held.get(name) != content]
        active, frozen = self.model.read(self.model.trained_names(stage)), self.model.read(missing)
        correction = unflatten(self.aggregation.correction(client_id, self.model.parameters(active)))
        task = Task(client_id, self.round, stage, active, needed, frozen, correction)
        held.update(needed)
        self.ledger.sent(client_id, self.current.sent(task))
        return task

    def set_holdings(self, client_id: int, held: dict[str, str]) -> None:
        """Takes a client's word for the frozen parts that it holds, by their content ids; other names are left out."""
        self._holdings[client_id] = {name: held[name] for name in self.model.modules if name in held}

    def absorb(self, results: Iterable[Result | Failure], step: Callable[[], Any] | None = None) -> RoundReport:
        """Ends the round: aggregates, steps the server optimizer, calibrates.

        Args:
            results: One for every participant, in ascending order of client id. They are taken one at a
                time, so a generator may reuse one model for all clients.
            step: Steps the server optimizer; ``optimizer.step`` unless a driver passes its own wrapper.

        Raises:
            AllClientsFailedError: Clients took part and failed, and none gave a usable result. The global model is as
                it was before the round. A round of clients that only had too few images, or were late, counts as an
                empty one, and so does any of a rule that always steps.
            NonFiniteModelError: The round broke the global model; its last checkpoint is good.
        """
        names = self.model.trained_names(self.stage)
        reference = flatten(self.model.read(names))
        intake, outcomes = Intake(reference, self.aggregation, self.max_update), []
        for result in results:
            with self.times("aggregation"):
                outcomes += self._take(result, intake, reference)
        lost = [failure for failure in intake.failures if not failure.skipped] + (intake.late if self.quorum else [])
        if lost and len(intake.trained) < max(1, self.quorum) and not self.aggregation.always_steps:
            enough = f"; {self.quorum} are needed" if self.quorum > 1 else ""
            usable = len(intake.trained) or "no"
            raise AllClientsFailedError(f"round {self.round}: {usable} usable update{enough}; {intake.reasons()}")
        with self.times("aggregation"):
            changed = self._aggregate(names, reference, intake)
            (step or self.optimizer.step)()
            self.optimizer.zero_grad(set_to_none=True)
        self._forget_ids(changed)
        self.participation.observe(self.round, outcomes)
        report = self._end_round(intake, bool(changed))
        self._check_finite(report.round)
        return report

    def _aggregate(self, names: list[str], reference: Tensors, intake: Intake) -> set[str]:
        """Gives the optimizer its gradients, and the model its counters; returns the parts that change by it."""
        rule = self.aggregation
        if not intake.trained and not rule.always_steps:
            return set()
        aggregate = rule.finish()
        for part, reason in rule.refused.items():
            logger.warning("round %d: %s keeps its values: %s", self.round, part, reason)
        given = aggregate if rule.always_steps else {key: aggregate[key] for key in intake.given}
        moved = {key: tensor for key, tensor in given.items() if part_of(key) not in rule.refused}
        self._set_gradients(names, moved)
        counters = intake.counters if rule.takes_counters else {}
        counted = {key: counter for key, counter in counters.items() if part_of(key) not in rule.refused}
        for key, counter in counted.items():
            reference[key].copy_(counter)
        return {part_of(key) for key in (*moved, *counted)}

    def _check_finite(self, round_: int) -> None:
        """Ends the run before a broken model gets into a checkpoint.

        No update that is taken in does it at once. A server optimizer with a large learning rate can, and a liar who
        pushes a mean as far as is allowed, round after round.
        """
        for key, tensor in flatten(self.model.read(self.model.modules)).items():
            if not torch.isfinite(tensor).all():
                raise NonFiniteModelError(
                    f"round {round_}: {key} of the global model is not finite after {type(self.aggregation).__name__}, "
                    f"{type(self.optimizer).__name__} and calibration; the checkpoint of the round before is good"
                )

    def _take(self, result: Result | Failure, intake: Intake, reference: Tensors) -> list[Outcome]:
        """Takes what has arrived of a client's result; returns what the selector learns from it."""
        client, seconds = result.client_id, 0.0
        asked = self.current.asked.get(client, [])
        if self.participation.fleet and asked and isinstance(result, Result):
            delivery = self.participation.fleet.deliver(result, self.current.down_bytes[client])
            seconds = self.current.seconds[client] = delivery.seconds
            if isinstance(delivery.result, Result) and delivery.result is not result:
                asked = asked[-len(delivery.result.parts) :]
            result = delivery.result
        arrived = intake.check(result, asked)
        if isinstance(arrived, Result):
            # A client cannot claim more weight than the division gave it, or than it announced when it joined.
            arrived = replace(arrived, num_images=min(arrived.num_images, self.participation.images[client]))
        intake.take(arrived)
        if isinstance(arrived, Failure):
            self.ledger.lost(arrived)
            return []
        self.ledger.received(arrived, num_bytes(arrived.parts))
        update = sample_update(arrived, reference) if self.participation.selector.wants_updates else None
        return [Outcome(client, arrived.num_images, arrived.squared_loss, seconds, update)]

    @torch.no_grad()
    def _set_gradients(self, names: list[str], aggregate: Tensors) -> None:
        """Gives ``global - aggregate`` as gradient to the server optimizer; buffers take the aggregate.

        What no client gave has no gradient, so that neither momentum nor weight decay moves it.
        """
        for name in names:
            module = self.model.modules[name]
            parameters = dict(module.named_parameters())
            for key, own in module.state_dict().items():
                value = aggregate.get(f"{name}/{key}")
                if key in parameters and value is not None:
                    parameters[key].grad = own - value
                elif value is not None:
                    own.copy_(value)

    def _end_round(self, intake: Intake, moved: bool) -> RoundReport:
        """Looks at the pace, calibrates if that is due, and closes the books of the round."""
        stage, cohort = self.stage, self.current.cohort
        reading = self.pace.observe(self._followed()) if self.pace and moved else None
        self.stage_rounds[stage.index] += 1
        over = self.stage_rounds[stage.index] >= stage.rounds or (reading is not None and reading.freeze)
        report = RoundReport(
            round=self.round,
            stage=stage.index,
            trained=tuple(intake.trained),
            dropped=cohort.dropped,
            ineligible=cohort.ineligible,
            unavailable=cohort.unavailable,
            failures=tuple(intake.failures),
            late=tuple(intake.late),
            loss=intake.mean_loss(),
            down_bytes=sum(self.current.down_bytes.values()),
            up_bytes=intake.up_bytes,
            macs=intake.macs,
            activation_bytes=intake.activation_bytes,
            calibration_loss=self._calibrate(moved, over),
            seconds=self._advance_clock(),
            pace=reading,
        )
        self.failed_updates += len(intake.failures)
        self.round += 1
        self._index += over
        return report

    def _calibrate(self, trained: bool, last_of_stage: bool) -> float | None:
        if not self.calibration or not self.calibration.due(trained, last_of_stage):
            return None
        assert self.auxiliary is not None
        with self.times("calibration"):
            report = self.calibration.run(self.model, self.stage, self.auxiliary, self.round, self.seed)
        self._ids = {}
        return report.loss

    def _advance_clock(self) -> float | None:
        fleet = self.participation.fleet
        return fleet.advance(list(self.current.seconds.values())) if fleet else None

    def _enter(self, stage: Stage) -> None:
        self.model.encoder.depth = stage.depth
        if stage.index == self._entered:
            return
        if stage.index > 0 and grew(self.stages[stage.index - 1], stage):
            self._grow(self.stages[stage.index - 1], stage)
        self._entered = stage.index
        self.participation.begin_stage(stage)
        if self.pace:
            self.pace.begin_stage(self._followed(), torch_generator(self.seed, "pace", stage.index))

    def _grow(self, previous: Stage, stage: Stage) -> None:
        """Gives the new blocks, and the heads, the weights that the scheme wants them to start from."""
        if self.scheme.weight_transfer:
            copied = transfer_weights(self.model.encoder, previous, stage)
            self._forget_ids(f"block.{block}" for block in copied)
        if self.scheme.renew_heads:
            for name in self.model.heads:
                renew(self.model.modules[name], derive_seed(self.seed, name, stage.index))
            self._forget_ids(self.model.heads)

    def _followed(self) -> list[torch.Tensor]:
        """What the pace controller follows: the parameters of the trained stem and blocks."""
        names = [name for name in self.model.trained_names(self.stage) if name == "stem" or name.startswith("block.")]
        return [parameter for name in names for parameter in self.model.modules[name].parameters()]

    def _part_id(self, name: str) -> str:
        if name not in self._ids:
            self._ids[name] = content_id(self.model.read([name])[name])
        return self._ids[name]

    def _forget_ids(self, names: Iterable[str]) -> None:
        """Makes the content ids of parts whose tensors changed anew, once a client needs them."""
        for name in names:
            self._ids.pop(name, None)

    def state_dict(self) -> dict[str, Any]:
        """Everything but the weights and the optimizer, in plain types and tensors."""
        return {
            "round": self.round,
            "index": self._index,
            "entered": self._entered,
            "stage_rounds": list(self.stage_rounds),
            "holdings": {client: dict(held) for client, held in self._holdings.items()},
            "ledger": self.ledger.state_dict(),
            "failed_updates": self.failed_updates,
            "participation": self.participation.state_dict(),
            "aggregation": self.aggregation.state_dict(),
            "pace": self.pace.state_dict() if self.pace else None,
            "seconds": self.times.seconds(),
            "settings": self.settings(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`; the weights must have been restored before.

        Raises:
            ValueError: The checkpoint belongs to a run with other stages, clients or seed.
        """
        check_same(state["settings"], self.settings())
        self.round, self._index, self._entered = state["round"], state["index"], state["entered"]
        self.stage_rounds = list(state["stage_rounds"])
        self._holdings = {client: dict(held) for client, held in state["holdings"].items()}
        self.ledger.load_state_dict(state["ledger"])
        self.failed_updates = state["failed_updates"]
        self.participation.load_state_dict(state["participation"])
        self.aggregation.load_state_dict(state["aggregation"])
        if self.pace:
            self.pace.load_state_dict(state["pace"])
        self.times.restore(state["seconds"])
        self.model.encoder.depth = self.stages[max(self._entered, 0)].depth
        self._ids = {}

    def settings(self) -> dict[str, Any]:
        """Settings that a resumed run must share with its checkpoint."""
        return {
            "scheme": self.scheme.name,
            "rounds per stage": [stage.rounds for stage in self.stages],
            "blocks per stage": [len(stage.present) for stage in self.stages],
            "layer budget": self.scheme.layer_budget,
            "clients": self.participation.num_clients,
            "selector": type(self.participation.selector).__name__,
            "virtual clock": self.participation.fleet is not None,
            "deadline": repr(self.participation.fleet.deadline if self.participation.fleet else None),
            "pace": type(self.pace).__name__,
            "server optimizer": describe_optimizer(self.optimizer),
            "seed": self.seed,
        }
