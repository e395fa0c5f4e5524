"""A dry run: the same server and the same rounds, on parts that have a size and no values.

Cohorts, depth dropout, the parts that travel and the clock are those of the real run with this seed, because the same
code decides them. Training itself is not run: losses are unknown, so nobody fails, a selector learns nothing, and no
pace controller ends a stage early.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache, partial
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedssl.client.training_loop import LoopReport
from fedssl.costs.prediction import Forecast, StepPredictor
from fedssl.data.datasets import SampleSet
from fedssl.devices import DeviceProfile
from fedssl.federation.federation import Engine, Federation
from fedssl.federation.settings import FederationSettings
from fedssl.protocol.compression import Compression, pack_update
from fedssl.protocol.messages import Failure, Parts, Result, Task, Tensors, num_bytes
from fedssl.protocol.parts import PartitionedModel
from fedssl.server.aggregation import Update
from fedssl.server.calibration import Calibration
from fedssl.server.global_step import GlobalStep
from fedssl.server.participation import Cohort, Participation
from fedssl.server.rounds import OpenRound, RoundReport
from fedssl.server.selection import Candidate, Selector
from fedssl.server.server import Server
from fedssl.server.updates import ReceivedUpdates


@dataclass(frozen=True)
class DryRound:
    """A round without training: the server's notes on each client, and its report."""

    notes: OpenRound
    report: RoundReport


def dry_federation(
    settings: FederationSettings,
    sizes: Sequence[int],
    predictor: StepPredictor,
    *,
    profiles: list[DeviceProfile] | None = None,
    participation: Participation | None = None,
) -> Federation:
    """Build a federation that can be run dry.

    Args:
        settings: Settings of the run.
        sizes: Number of images of each client.
        predictor: Predicts local steps of the run; its weights are not changed.
        profiles: Devices of the clients; ``None`` takes those of the settings, an empty list none.
        participation: Draws the cohorts; ``None`` draws as the settings say.

    Raises:
        ValueError: The settings do not suit each other.
    """
    model = ModelWithoutValues(predictor.model)
    return Federation(
        _dry(settings),
        sizes,
        model=model,
        predictor=predictor,
        profiles=profiles,
        participation=participation,
        step=CountedStep(model, settings.server.aggregation.corrects),
    )


def dry_rounds(federation: Federation) -> list[DryRound]:
    """Run all rounds of a dry federation."""
    server, compression = federation.server, federation.settings.local.compression
    engine = DryEngine(federation.forecast, federation.sizes, compression)
    rounds = []
    while not server.done:
        report = federation.round(engine)
        # Not copied: every round begins with new notes.
        rounds.append(DryRound(server.current, report))
    return rounds


class DryEngine(Engine):
    """Engine whose clients give back the parts that they got, and the operations that training would take.

    Args:
        forecast: Predicts what a round asks of a client.
        sizes: Number of images of each client.
        compression: Packs what clients send; ``None`` sends the weights.
    """

    def __init__(self, forecast: Forecast, sizes: Sequence[int], compression: Compression | None = None) -> None:
        self._forecast = forecast
        self._sizes = sizes
        self._packed = cache(partial(self._pack, compression)) if compression else None
        self._banks: dict[int, str] = {}

    def connect(self, server: Server) -> None:
        """Do nothing: all clients are there."""

    def train(self, server: Server, cohort: Cohort) -> Iterator[Result | Failure]:
        """Answer for every participant."""
        return (self._answer(server.make_task(client)) for client in cohort.participants)

    def _answer(self, task: Task) -> Result | Failure:
        images = self._sizes[task.client_id]
        steps = self._forecast.steps(images)
        if not steps:
            return Failure(task.client_id, f"{images} images are too few to contrast", skipped=True)
        macs = self._forecast(task.stage, images).macs
        if self._fills_bank(task):
            macs += self._forecast.filling_macs(task.stage, images)
        parts = {name: self._packed(name) for name in task.active} if self._packed else task.active
        return Result(task.client_id, parts, images, math.nan, math.nan, macs, 0, steps)

    def _pack(self, rule: Compression, name: str) -> Tensors:
        """Compress a part in which nothing has changed: the bytes depend on its size alone."""
        model = self._forecast.predictor.model
        part = model.read([name])
        return _without_values(pack_update(rule, part, part, model.parameters([name]), {})[0][name])

    def _fills_bank(self, task: Task) -> bool:
        """Return True if the client's bank is not yet what the task needs; it is from now on."""
        bank = self._forecast.predictor.bank
        content = bank.content(task) if bank else ""
        outdated = self._banks.get(task.client_id, "") != content
        self._banks[task.client_id] = content
        return bool(content) and outdated


class ModelWithoutValues(PartitionedModel):
    """Model whose parts are read as one tensor each, of as many bytes and without values.

    Args:
        model: Model with the sizes of all parts.
    """

    def __init__(self, model: PartitionedModel) -> None:
        vars(self).update(vars(model))  # no second model: it shares the modules, and only reads them as sizes
        self._parts = {name: _without_values(model.read([name])[name]) for name in self.parts}
        self._gradients = {name: _without_values(model.parameters([name])) for name in self.parts}
        self._contents = count()

    def read(self, names: Iterable[str]) -> Parts:
        """Return parts without values."""
        return {name: self._parts[name] for name in names}

    def gradients(self, names: Iterable[str]) -> Parts:
        """Return the gradients of parts, without values."""
        return {name: self._gradients[name] for name in names if self._gradients[name]}

    def content_id(self, name: str) -> str:
        """Return an id that no part has had: the server asks only after a part has changed."""
        return str(next(self._contents))


class CountedStep(GlobalStep):
    """Step of a model without values: every part that some client gave counts as changed.

    Args:
        model: Global model.
        corrects: Sends a correction of the gradients with every task.
    """

    def __init__(self, model: ModelWithoutValues, corrects: bool) -> None:
        self._model = model
        self._corrects = corrects

    def correction(self, client_id: int, names: list[str]) -> Parts:
        """Return one tensor a part, of as many bytes as its parameters."""
        return self._model.gradients(names) if self._corrects else {}

    def begin_round(self, names: list[str], lr_factor: float = 1.0) -> ReceivedUpdates:
        """Open a round whose updates are only counted."""
        return CountedUpdates({}, _not_handed_on)

    def finish(self, updates: ReceivedUpdates, round_: int, step: Callable[[], Any] | None = None) -> set[str]:
        """Return the names of the parts that some client gave."""
        return updates.given


class CountedUpdates(ReceivedUpdates):
    """Updates without values; ``given`` has the names of their parts."""

    def check(self, result: Result | Failure, parts: Iterable[str]) -> Result | Failure:
        """Return the result: a dry client sends what it was asked for."""
        return result

    def _add(self, result: Result) -> None:
        self.given.update(result.parts)


class Unobserved(Selector):
    """Selector that learns nothing of the rounds, since a dry run has no outcomes to show.

    Args:
        selector: Chooses as it would before its first observation.
    """

    def __init__(self, selector: Selector) -> None:
        # A copy, because planning must not begin the selector that the run itself will use.
        self._selector = copy.deepcopy(selector)

    def begin(self, num_clients: int, seed: int) -> None:
        """Begin a run."""
        self._selector.begin(num_clients, seed)

    def begin_stage(self, index: int) -> None:
        """Begin a stage."""
        self._selector.begin_stage(index)

    def select(self, candidates: Sequence[Candidate], size: int, round_: int, rng: np.random.Generator) -> list[int]:
        """Choose as the selector does."""
        return self._selector.select(candidates, size, round_, rng)


@dataclass(frozen=True)
class DryCalibration(Calibration):
    """Calibration that is due when the real one is, and trains nothing."""

    def check(self, auxiliary: SampleSet | None) -> None:
        """Do without images."""

    def run(self, *_: Any) -> LoopReport:
        """Report no step."""
        return LoopReport(math.nan, math.nan, 0, 0, 0)


def _dry(settings: FederationSettings) -> FederationSettings:
    """Return settings whose selector, calibration and pace controller need no values."""
    calibration, selector = settings.server.calibration, settings.cohort.selector
    if calibration:
        calibration = DryCalibration(**{each.name: getattr(calibration, each.name) for each in fields(calibration)})
    server = replace(settings.server, calibration=calibration, pace=None)
    cohort = replace(settings.cohort, selector=Unobserved(selector) if selector else None)
    return replace(settings, server=server, cohort=cohort)


def _without_values(tensors: Mapping[str, Tensor]) -> Tensors:
    """Return one tensor of as many bytes."""
    # One tensor instead of all: a dry run asks for bytes only, and adds them up for every client of every round.
    size = num_bytes({"": dict(tensors)})
    return {"bytes": torch.empty(size, dtype=torch.uint8, device="meta")} if size else {}


def _not_handed_on(update: Update) -> None:
    raise AssertionError("a dry run aggregates nothing")
