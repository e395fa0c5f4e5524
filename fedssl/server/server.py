"""The server's side of a federation: tasks out, results in, one step of the global model a round."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch.optim import Optimizer

from fedssl.data.datasets import SampleSet
from fedssl.devices import fleet_stages
from fedssl.protocol.messages import Failure, Result, Task, num_bytes
from fedssl.protocol.parts import PartitionedModel
from fedssl.server.aggregation import Aggregation
from fedssl.server.calibration import Calibration
from fedssl.server.client_stage import StageOptions, check_untied
from fedssl.server.global_step import GlobalStep
from fedssl.server.holdings import Holdings
from fedssl.server.lr_schedule import LRSchedule
from fedssl.server.participation import Cohort, Participation
from fedssl.server.rounds import Ledger, OpenRound, RoundReport
from fedssl.server.selection import Outcome
from fedssl.server.updates import ReceivedUpdates, sample_update
from fedssl.utils.files import check_same, describe_optimizer
from fedssl.utils.resources import Stopwatch
from fedssl.utils.seeding import derive_seed, torch_generator
from layerwise import BlockPerturbation, Scheme, Stage, grew, renew, transfer_weights


class AllClientsFailedError(RuntimeError):
    """Clients took part in a round but none, or too few, gave a usable result."""


class Server:
    """Server logic without any engine: this process, a network and a dry run drive it alike.

    A round is :meth:`begin_round`, :meth:`make_task` for every participant, :meth:`end_round`.

    Args:
        model: Global model.
        scheme: Cuts the run into stages.
        rounds: Communication rounds of the run, at most.
        participation: Draws the clients of every round.
        step: Checks and aggregates the clients' updates and steps the global model.
        calibration: Server-side calibration, if any.
        auxiliary: Unlabelled images for calibration.
        pace: Ends a stage before its last round once its blocks have converged; ``None`` never does.
        lr_schedule: Learning rate of clients and calibration over the rounds.
        seed: Seed of the run.

    Attributes:
        holdings: Frozen parts that each client holds.
        current: Notes of the round that runs, or ran last.
        options: Variants that clients may train, for every stage.
        quorum: Usable results that a round needs in which a client failed or was late; 0: one, if a client failed.

    Raises:
        ValueError: The scheme or the schedule does not fit the encoder or the rounds, or calibration has no images.
    """

    def __init__(
        self,
        model: PartitionedModel,
        *,
        scheme: Scheme,
        rounds: int,
        participation: Participation,
        step: GlobalStep,
        calibration: Calibration | None = None,
        auxiliary: SampleSet | None = None,
        pace: BlockPerturbation | None = None,
        lr_schedule: LRSchedule = LRSchedule(),  # noqa: B008 (frozen)
        seed: int = 0,
    ) -> None:
        if calibration:
            calibration.check(auxiliary)
        scheme.check(model.encoder)
        step.begin(participation, rounds)
        self.model = model
        self.scheme = scheme
        self.stages = fleet_stages(scheme, len(model.encoder.blocks), rounds, participation.fleet)
        lr_schedule.check(self.stages)
        self.options = [StageOptions(scheme, stage, seed) for stage in self.stages]
        # A generator: pricing every client's variant takes time, and is needed only where a weight is tied.
        check_untied(model, (participation.trained(each.priced) for each in self.options))
        self.participation = participation
        self.step = step
        self.calibration = calibration
        self.auxiliary = auxiliary
        self.pace = pace
        self.lr_schedule = lr_schedule
        self.seed = seed
        self.round = 0
        self.holdings = Holdings(model)
        self.current = OpenRound()
        self.ledger = Ledger()
        self.times = Stopwatch()
        self.failed_updates = 0
        self.quorum = 0
        self.stage_rounds: list[int] = [0] * len(self.stages)
        # Apart from ``_entered``: a stage ends in one round, the next begins in another, with a checkpoint between.
        self._index = 0
        self._entered = -1

    @property
    def optimizer(self) -> Optimizer:
        """Server optimizer."""
        return self.step.optimizer

    @property
    def aggregation(self) -> Aggregation:
        """Aggregation rule."""
        return self.step.rule

    @property
    def done(self) -> bool:
        """True once the last stage has ended."""
        return self._index >= len(self.stages)

    @property
    def stage(self) -> Stage:
        """The stage of the current round; after the last round, the last stage."""
        return self.stages[min(self._index, len(self.stages) - 1)]

    def open_stages(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the stages, numbered from 1, that have begun and not ended, and those that have not begun."""
        left = range(self._index, len(self.stages))
        begun = tuple(at + 1 for at in left if self.stage_rounds[at])
        return begun, tuple(at + 1 for at in left if not self.stage_rounds[at])

    def cheapest_stages(self) -> list[Stage]:
        """Return the cheapest variant of every stage: the minimum that a device must support."""
        return [options.priced[-1] for options in self.options]

    def begin_round(self) -> Cohort:
        """Grow the model if a stage begins, and draw this round's clients."""
        self._enter(self.stage)
        lr_factor = self.lr_schedule.in_stage(self.stages, self.stage.index, self.stage_rounds[self.stage.index])
        self.current = OpenRound(self.participation.draw(self.round, self._options.priced), lr_factor)
        return self.current.cohort

    def make_task(self, client_id: int) -> Task:
        """Make a client's task: the active part, the frozen parts that it does not hold yet, the rule's correction.

        Raises:
            ValueError: The client's device can train no variant of the stage, so that it is in no cohort.
        """
        variant = self.participation.choose(client_id, self._options.priced)
        if variant is None:
            raise ValueError(f"client {client_id} can train no variant of stage {self.stage.index + 1}")
        stage = self._options.draw(variant, client_id, self.round)
        needed, missing = self.holdings.send(client_id, self.model.frozen_names(stage))
        active, frozen = self.model.read(self.model.trained_names(stage)), self.model.read(missing)
        correction = self.step.correction(client_id, list(active))
        task = Task(client_id, self.round, stage, active, needed, frozen, correction, self.current.lr_factor)
        self.ledger.sent(client_id, self.current.sent(task))
        return task

    def end_round(self, results: Iterable[Result | Failure], step: Callable[[], Any] | None = None) -> RoundReport:
        """End the round: aggregate, step the server optimizer, calibrate.

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
        updates, outcomes = self.step.begin_round(self.model.trained_names(self.stage), self.current.lr_factor), []
        for result in results:
            with self.times("aggregation"):
                outcomes += self._take(result, updates)
        self._check_quorum(updates)
        with self.times("aggregation"):
            changed = self.step.finish(updates, self.round, step)
        self.holdings.changed(changed)
        # Only now, so that a selector has learnt nothing of a round that raised and is run again.
        self.participation.observe(self.round, outcomes)
        report = self._close_round(updates, bool(changed))
        self.step.check_finite(report.round)
        return report

    @property
    def _options(self) -> StageOptions:
        return self.options[self.stage.index]

    def _check_quorum(self, updates: ReceivedUpdates) -> None:
        """End the run if clients failed and too few others gave something, unless the rule hides who did."""
        lost = [failure for failure in updates.failures if not failure.skipped]
        lost += updates.late if self.quorum else []
        if lost and len(updates.trained) < max(1, self.quorum) and not self.aggregation.always_steps:
            enough = f"; {self.quorum} are needed" if self.quorum > 1 else ""
            usable = len(updates.trained) or "no"
            raise AllClientsFailedError(f"round {self.round}: {usable} usable update{enough}; {updates.reasons()}")

    def _take(self, result: Result | Failure, updates: ReceivedUpdates) -> list[Outcome]:
        """Take the part of a client's result that has arrived; return the feedback for the selector."""
        client, seconds = result.client_id, 0.0
        asked = self.current.asked.get(client, [])
        # Who was sent nothing has no download to time; the check below refuses its result.
        if self.participation.fleet and asked and isinstance(result, Result):
            delivery = self.participation.fleet.deliver(result, self.current.down_bytes[client])
            seconds = self.current.seconds[client] = delivery.seconds
            # The deadline cuts parts of a result off, and only what is left may be asked for.
            if isinstance(delivery.result, Result) and delivery.result is not result:
                asked = asked[-len(delivery.result.parts) :]
            result = delivery.result
        # As it travelled: the check unpacks what a client has compressed.
        sent = num_bytes(result.parts) if isinstance(result, Result) else 0
        arrived = updates.check(result, asked)
        if isinstance(arrived, Result):
            # A client cannot claim more weight than the division gave it, or than it announced when it joined.
            arrived = replace(arrived, num_images=min(arrived.num_images, self.participation.images[client]))
        updates.take(arrived)
        if isinstance(arrived, Failure):
            self.ledger.lost(arrived)
            return []
        self.current.up_bytes[client] = sent
        self.ledger.received(arrived, self.current.up_bytes[client])
        wanted = self.participation.selector.wants_updates
        # Sampled at once: the tensors may lie in the resident model, which the next client overwrites.
        update = sample_update(arrived, updates.reference) if wanted else None
        squared_loss = math.nan if arrived.squared_loss is None else arrived.squared_loss
        return [Outcome(client, arrived.num_images, squared_loss, seconds, update)]

    def _close_round(self, updates: ReceivedUpdates, moved: bool) -> RoundReport:
        """Observe the pace, calibrate if that is due, and close the books of the round."""
        stage, cohort = self.stage, self.current.cohort
        # Before calibration, which moves the same blocks and may be due only if this ends the stage. A round that moved
        # nothing is no reading: it would look like convergence.
        reading = self.pace.observe(self._followed()) if self.pace and moved else None
        self.stage_rounds[stage.index] += 1
        over = self.stage_rounds[stage.index] >= stage.rounds or (reading is not None and reading.freeze)
        report = RoundReport(
            round=self.round,
            stage=stage.index,
            lr_factor=self.current.lr_factor,
            trained=tuple(updates.trained),
            dropped=cohort.dropped,
            ineligible=cohort.ineligible,
            unavailable=cohort.unavailable,
            failures=tuple(updates.failures),
            late=tuple(updates.late),
            loss=updates.mean_loss(),
            down_bytes=sum(self.current.down_bytes.values()),
            up_bytes=sum(self.current.up_bytes.values()),
            macs=updates.macs,
            activation_bytes=updates.activation_bytes,
            calibration_loss=self._calibrate(moved, over),
            seconds=self._advance_clock(),
            pace=reading,
            distance=updates.distance.value() if updates.distance else math.nan,
        )
        # After calibration, which still asks for the stage and the number of the round that ends.
        self.failed_updates += len(updates.failures)
        self.round += 1
        self._index += over
        return report

    def _calibrate(self, trained: bool, last_of_stage: bool) -> float | None:
        if not self.calibration or not self.calibration.due(trained, last_of_stage):
            return None
        with self.times("calibration"):
            run, lr_factor = self.calibration.run, self.current.lr_factor
            report = run(self.model, self.stage, self.auxiliary, self.round, self.seed, lr_factor)
        # Calibration trains frozen parts too, so clients have to be sent them again.
        self.holdings.changed([*self.model.trained_names(self.stage), *self.model.frozen_names(self.stage)])
        return report.loss

    def _advance_clock(self) -> float | None:
        fleet = self.participation.fleet
        return fleet.advance(list(self.current.seconds.values())) if fleet else None

    def _enter(self, stage: Stage) -> None:
        self.model.encoder.depth = stage.depth
        if stage.index == self._entered:
            return
        # Before the pace controller looks: copied weights are where the new blocks start, and no training of theirs.
        if stage.index > 0 and grew(self.stages[stage.index - 1], stage):
            self._grow(self.stages[stage.index - 1], stage)
        self._entered = stage.index
        self.participation.begin_stage(stage)
        if self.pace:
            self.pace.begin_stage(self._followed(), torch_generator(self.seed, "pace", stage.index))

    def _grow(self, previous: Stage, stage: Stage) -> None:
        """Give the new blocks, and the heads, the weights that the scheme wants them to start from."""
        if self.scheme.weight_transfer:
            copied = transfer_weights(self.model.encoder, previous, stage)
            self.holdings.changed(f"block.{block}" for block in copied)
        if self.scheme.renew_heads:
            for name in self.model.heads:
                renew(self.model.parts[name], derive_seed(self.seed, name, stage.index))
            self.holdings.changed(self.model.heads)

    def _followed(self) -> list[torch.Tensor]:
        """Return the parameters of the trained stem and blocks, which the pace controller follows."""
        names = [name for name in self.model.trained_names(self.stage) if name == "stem" or name.startswith("block.")]
        return [parameter for name in names for parameter in self.model.parts[name].parameters()]

    def state_dict(self) -> dict[str, Any]:
        """Return everything but the weights and the optimizer, in plain types and tensors."""
        return {
            "round": self.round,
            "index": self._index,
            "entered": self._entered,
            "stage_rounds": list(self.stage_rounds),
            "holdings": self.holdings.state_dict(),
            "ledger": self.ledger.state_dict(),
            "failed_updates": self.failed_updates,
            "participation": self.participation.state_dict(),
            "aggregation": self.aggregation.state_dict(),
            "pace": self.pace.state_dict() if self.pace else None,
            "seconds": self.times.seconds(),
            "settings": self.settings(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`; the weights must have been restored before.

        Raises:
            ValueError: The checkpoint belongs to a run with other stages, clients or seed.
        """
        check_same(state["settings"], self.settings())
        self.round, self._index, self._entered = state["round"], state["index"], state["entered"]
        self.stage_rounds = list(state["stage_rounds"])
        self.holdings.load_state_dict(state["holdings"])
        self.ledger.load_state_dict(state["ledger"])
        self.failed_updates = state["failed_updates"]
        self.participation.load_state_dict(state["participation"])
        self.aggregation.load_state_dict(state["aggregation"])
        if self.pace:
            self.pace.load_state_dict(state["pace"])
        self.times.restore(state["seconds"])
        # The stage entered last, which was trained and is evaluated: ``_index`` may be at the next one already.
        self.model.encoder.depth = self.stages[max(self._entered, 0)].depth

    def settings(self) -> dict[str, Any]:
        """Return the settings that a resumed run must share with its checkpoint."""
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
