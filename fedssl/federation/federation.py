"""Federation: server and resident client of a run, built in one place, and the engines that train its cohorts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from fedssl.client.local_step import LocalStep
from fedssl.client.local_update import LocalUpdate
from fedssl.costs.prediction import Forecast, StepPredictor, step_sizes
from fedssl.data.datasets import SampleSet
from fedssl.devices import DeviceProfile, Eligibility, Fleet
from fedssl.federation.settings import FederationSettings
from fedssl.memory_budget.setting import ClientBudgets
from fedssl.protocol.messages import Failure, Result, Tensors
from fedssl.protocol.parts import PartitionedModel
from fedssl.server.calibration import Calibration
from fedssl.server.global_step import AggregatedStep, GlobalStep
from fedssl.server.participation import Cohort, Participation
from fedssl.server.rounds import RoundReport
from fedssl.server.server import Server


class Engine(ABC):
    """Way to reach clients and train them. A round calls ``connect``, ``train`` and ``metrics`` in this order."""

    @abstractmethod
    def connect(self, server: Server) -> None:
        """Tell the server which clients are connected, before it draws those of a round."""

    @abstractmethod
    def train(self, server: Server, cohort: Cohort) -> Iterator[Result | Failure]:
        """Train the participants and yield one result for each, in ascending order of client id."""

    def metrics(self, report: RoundReport) -> dict[str, float]:
        """Return metrics of the engine's own for a round, by the key in the loggers; by default none."""
        return {}


class Federation:
    """Server and client of a run. An engine decides where the clients train: here, on a network, or not at all.

    Args:
        settings: Settings of the run.
        sizes: Number of images of each client.
        model: Global model; ``None`` builds a new one.
        auxiliary: Images that no client holds, for calibration.
        predictor: Predicts local steps; ``None`` makes one, with a model of its own, once a step must be predicted.
        profiles: Devices of the clients; ``None`` takes those of the settings.
        participation: Draws the cohorts; ``None`` draws as the settings say.
        step: Steps the global model; ``None`` aggregates as the settings say.

    Attributes:
        on_client: Called with the cohort and a client's id when its answer has been taken.

    Raises:
        ValueError: The settings do not suit the model, the number of clients or their images.
    """

    def __init__(
        self,
        settings: FederationSettings,
        sizes: Sequence[int],
        *,
        model: PartitionedModel | None = None,
        auxiliary: SampleSet | None = None,
        predictor: StepPredictor | None = None,
        profiles: list[DeviceProfile] | None = None,
        participation: Participation | None = None,
        step: GlobalStep | None = None,
    ) -> None:
        self.settings, self.sizes = settings, list(sizes)
        self._predictor = predictor
        self.model = model or settings.build()
        # Before the server: its fleet needs the forecast, and the forecast the memory budgets of the devices.
        self.profiles = self._own_profiles() if profiles is None else profiles
        self.server = Server(
            self.model,
            scheme=settings.scheme,
            rounds=settings.rounds,
            participation=participation or self._participation(),
            step=step or self._global_step(),
            calibration=self._calibration(),
            auxiliary=auxiliary,
            pace=settings.server.pace,
            lr_schedule=settings.local.lr_schedule,
            seed=settings.seed,
        )
        self.on_client: Callable[[Cohort, int], None] | None = None

    def _calibration(self) -> Calibration | None:
        """Return the calibration with the clients' epochs and batch size where it has none of its own."""
        own, local = self.settings.server.calibration, self.settings.local
        if own is None:
            return None
        return replace(own, epochs=own.epochs or local.epochs, batch_size=own.batch_size or local.batch_size)

    @property
    def predictor(self) -> StepPredictor:
        """Predictor of local steps, with a model of its own."""
        self._predictor = self._predictor or self.settings.predictor()
        return self._predictor

    @cached_property
    def memory(self) -> ClientBudgets | None:
        """Memory budget of the clients' steps, if there is one."""
        local, seed = self.settings.local, self.settings.seed
        steps = step_sizes(self.sizes, local.batch_size)
        # Deferred: a run without a budget needs no predictor, which brings a second model.
        return local.memory.for_clients(lambda: self.predictor, steps, self.profiles, seed)

    @cached_property
    def forecast(self) -> Forecast:
        """Prediction of what a round asks of a client."""
        local, need = self.settings.local, self.memory.need if self.memory else None
        return Forecast(self.predictor, local.epochs, local.batch_size, need)

    @cached_property
    def client(self) -> LocalUpdate:
        """Resident client, which trains one client after another; it reads frozen parts from the global model."""
        # The content id needs no look: during a round the global model holds just what the tasks name.
        return make_client(self.settings, lambda name, content: self.model.read([name])[name], self.memory)

    def check_devices(self) -> None:
        """Refuse a run with a stage that no device can hold.

        Raises:
            ValueError: There is one; the message names the shortage.
        """
        if self.server.participation.fleet:
            self.server.participation.fleet.check(self.server.cheapest_stages())

    def check_memory(self) -> None:
        """Refuse a memory budget or an activation bank that some stage exceeds.

        Raises:
            ValueError: A step or a bank exceeds it.
        """
        if self.memory:
            self.memory.check(self.server.cheapest_stages())
        if self.settings.local.bank:
            # Every variant: devices choose by their memory, and know nothing of the bank's own budget.
            stages = [variant for options in self.server.options for variant in options.priced]
            self.predictor.check_bank(stages, max(self.sizes))

    def eligibility(self) -> list[Eligibility]:
        """Count the clients that can train each stage; empty without devices."""
        fleet = self.server.participation.fleet
        return fleet.eligibility(self.server.cheapest_stages()) if fleet else []

    def round(self, engine: Engine, step: Callable[[], Any] | None = None) -> RoundReport:
        """Run a communication round.

        Args:
            engine: Trains the cohort.
            step: Steps the server optimizer; ``None`` does so directly.
        """
        engine.connect(self.server)
        cohort = self.server.begin_round()
        return self.server.end_round(self._announced(engine.train(self.server, cohort), cohort), step)

    def _announced(self, results: Iterator[Result | Failure], cohort: Cohort) -> Iterator[Result | Failure]:
        for result in results:
            # After the yield, because the server asks for the next answer only when it has taken this one.
            yield result
            if self.on_client:
                self.on_client(cohort, result.client_id)

    def _own_profiles(self) -> list[DeviceProfile]:
        devices = self.settings.cohort.devices
        return devices.profiles(len(self.sizes), self.settings.seed) if devices else []

    def _participation(self) -> Participation:
        cohort = self.settings.cohort
        fleet = Fleet(self.profiles, self.sizes, self.forecast, cohort.deadline) if self.profiles else None
        return Participation(
            self.sizes, cohort.participation, cohort.dropout, cohort.selector, fleet, self.settings.seed
        )

    def _global_step(self) -> GlobalStep:
        server = self.settings.server
        # Each once, as a tied weight is in several parts. Absent layers are among them from the start: without a
        # gradient no optimizer moves them, and its state has one form in all checkpoints.
        parameters = dict.fromkeys(p for module in self.model.parts.values() for p in module.parameters())
        optimizer = server.optimizer(list(parameters))
        return AggregatedStep(
            self.model,
            server.aggregation,
            optimizer,
            max_update=server.max_update,
            measure_distance=server.measure_distance,
            compression=self.settings.local.compression,
        )


def make_client(
    settings: FederationSettings, recall: Callable[[str, str], Tensors], plans: ClientBudgets | None = None
) -> LocalUpdate:
    """Build the resident client of a run, on a node of its own or beside the server.

    Args:
        settings: Settings of the run.
        recall: Gives a frozen part that the client holds, by part name and content id.
        plans: Keep local steps within a memory budget.
    """
    local = settings.local
    return LocalUpdate(
        # A model of its own: clients overwrite it while the global one has to stay as it was sent.
        settings.build(),
        epochs=local.epochs,
        batch_size=local.batch_size,
        seed=settings.seed,
        recall=recall,
        step=LocalStep(local.alignment, local.proximal, clip_norm=local.gradient_clip_norm),
        start=local.start,
        plans=plans,
        bank=local.bank,
        compression=local.compression,
        clients_at_once=local.clients_at_once,
    )
