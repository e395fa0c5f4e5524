"""Federated pretraining: a round is one training step of a Lightning Trainer."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from pytorch_lightning.core.optimizer import LightningOptimizer
from torch import nn
from torch.optim import SGD, Optimizer

from fedssl.client.bank import ActivationBank
from fedssl.client.local_update import LocalUpdate
from fedssl.client.start import StartRule
from fedssl.costs.forecast import Forecast
from fedssl.costs.prediction import StepPredictor
from fedssl.data.clients import ClientData, ClientDatasets
from fedssl.data.images import ImageData
from fedssl.devices import Deadline, DeviceSource, Eligibility, Fleet
from fedssl.memory_budget.planner import ClientPlans
from fedssl.memory_budget.setting import MemoryRule, MemorySetting
from fedssl.protocol.messages import Failure, Result, Tensors
from fedssl.protocol.parts import MethodFactory, SplitModel
from fedssl.server.aggregation import Aggregation, WeightedMean
from fedssl.server.calibration import Calibration
from fedssl.server.client_stage import typical_choices
from fedssl.server.engine import Engine
from fedssl.server.participation import Cohort, Participation, check_dropout
from fedssl.server.rounds import RoundReport, round_metrics
from fedssl.server.selection import Selector
from fedssl.server.server import AllClientsFailedError, Server
from fedssl.server.updates import MAX_UPDATE, check_max_update
from fedssl.training.pretraining import Pretraining
from fedssl.training.processes import check_monitors, check_trainer
from fedssl.training.ranks import Ranks
from fedssl.training.run_progress import RunProgress, reason_of_end
from fedssl.utils.checks import check_method, check_together
from fedssl.utils.resources import memory_metrics, start_device_peak
from fedssl.utils.saved_state import check_same, restoring
from layerwise import BlockPerturbation, CausalTransformerSpec, EncoderSpec, Scheme
from linear_eval import EvaluationSettings, FinetuneSettings
from ssl_methods import OptimizerFactory, TwoViews, check_at_least, check_optimizer
from ssl_methods.alignment import LARGEST_WEIGHT, Alignment

logger = logging.getLogger(__name__)


def sgd(parameters: Any) -> Optimizer:
    """SGD with learning rate 1, which makes the server step plain FedAvg."""
    return SGD(parameters, lr=1.0)


class FederatedSSL(Pretraining):
    """End-to-end, layer-wise or progressive federated training (LW-FedSSL, arXiv 2401.11647).

    One epoch of the trainer is one communication round, and ``global_step`` is the number of rounds done.

    Args:
        encoder: The encoder to build.
        method: The objective: SimCLR, BYOL or MoCoV3, Supervised for labelled clients, LanguageModelling for text.
        augment: Makes two views of a batch of images; ``None`` for text.
        optimizer: The clients' optimizer, made anew for every client and round.
        scheme: Cuts the run into stages: EndToEnd, LayerWise or Progressive.
        rounds: Communication rounds of the whole run; the most there can be if ``pace`` is set.
        local_epochs: Epochs each client trains in a round.
        batch_size: Images a local step.
        participation: Clients a round: an ``int`` is a number, a ``float`` a fraction of all.
        dropout: Probability that a selected client cannot be reached.
        selector: Chooses each round's clients among those that can take part; ``None`` draws them at random.
        devices: The clients' devices; ``None``: every client can always take part, and there is no virtual clock.
        deadline: Ends every round after a time on the virtual clock; needs ``devices``.
        memory_budget: Peak memory of a client's local step: a size such as "300MiB"; "device": what its device has;
            "available": what this machine has left; a list of sizes: what is left in each round (FedHybrid); "4 bits".
        micro_batch: Images that the encoder takes at a time in a step: less memory, a second forward; ``None``: all.
        bank: Clients train from stored outputs of the frozen prefix; ``None``: they run it in every step.
        pace: Freezes blocks as soon as they have converged, before their stage's last round (SmartFreeze).
        start: What clients start a round from: FedU or FedEMA; ``None``: the global weights.
        alignment: Representation alignment with the received global model; ``None`` switches it off.
        proximal: mu of the FedProx term; 0 switches it off.
        calibration: Server-side calibration on auxiliary images; ``None`` switches it off.
        aggregation: How the clients' results become one.
        max_update: Most that a tensor of a client's update may change, as a root mean square and in units of one plus
            that of the global tensor, or the client is dropped. Honest training stays far below the default.
        server_optimizer: Steps the global model along ``global - aggregate``: SGD with lr 1 is FedAvg, with
            momentum FedAvgM, Adam FedAdam.
        evaluation: Neighbours and probe.
        finetuning: Fine-tunes a copy in the final evaluation; ``None`` does not.
        seed: Seed of every random choice; ``None`` takes the run's.
    """

    def __init__(
        self,
        encoder: EncoderSpec | CausalTransformerSpec,
        method: MethodFactory,
        augment: TwoViews | None,
        optimizer: OptimizerFactory,
        scheme: Scheme,
        rounds: int,
        local_epochs: int = 1,
        batch_size: int = 64,
        participation: int | float = 1.0,
        dropout: float = 0.0,
        selector: Selector | None = None,
        devices: DeviceSource | None = None,
        deadline: Deadline | None = None,
        memory_budget: str | list[str] | None = None,
        micro_batch: int | None = None,
        bank: ActivationBank | None = None,
        pace: BlockPerturbation | None = None,
        start: StartRule | None = None,
        alignment: Alignment | None = None,
        proximal: float = 0.0,
        calibration: Calibration | None = None,
        aggregation: Aggregation = WeightedMean(),  # noqa: B008 (a round starts it anew)
        max_update: float = MAX_UPDATE,
        server_optimizer: OptimizerFactory = sgd,
        evaluation: EvaluationSettings = EvaluationSettings(),  # noqa: B008 (frozen)
        finetuning: FinetuneSettings | None = None,
        seed: int | None = None,
    ) -> None:
        check_at_least(1, local_epochs=local_epochs)
        check_at_least(2, batch_size=batch_size)
        check_at_least(0, LARGEST_WEIGHT, proximal=proximal)
        check_optimizer("server_optimizer", server_optimizer)
        check_dropout(dropout)
        check_max_update(max_update)
        check_together(deadline, devices, memory_budget, micro_batch, bank)
        self.memory, self.micro_batch = MemorySetting.parse(memory_budget, devices), micro_batch
        super().__init__(scheme.adapt(encoder), method, augment, optimizer, evaluation, finetuning, seed)
        scheme.check(self.model.encoder)
        scheme.stages(len(self.model.encoder.blocks), rounds)
        if start:
            start.check(self.model.heads)
        check_method(self.model.method, alignment, bank)
        self.automatic_optimization = False
        self.heads = nn.ModuleDict(self.model.method.heads())
        self.states = nn.ModuleDict(self.model.method.state_parts())
        self.scheme, self.rounds = scheme, rounds
        self.local_epochs, self.batch_size = local_epochs, batch_size
        self.participation, self.dropout, self.selector = participation, dropout, selector
        self.devices, self.deadline, self.pace, self.start, self.bank = devices, deadline, pace, start, bank
        self.alignment, self.proximal, self.calibration = alignment, proximal, calibration
        self.aggregation, self.max_update, self.server_optimizer = aggregation, max_update, server_optimizer
        self.server: Server | None = None
        self.local: LocalUpdate | None = None
        self.engine: Engine | None = None
        self._ranks: Ranks | None = None
        self.on_client: Callable[[Cohort, int], None] | None = None
        self.last_report: RoundReport | None = None
        self._prepared: ClientData | None = None

    @property
    def summary(self) -> dict[str, str]:
        """Scheme and method, for tables and results."""
        return super().summary | {"scheme": self.scheme.name}

    def build(self) -> SplitModel:
        """A freshly initialised model, with micro-batches if they are set."""
        return super().build().in_micro_batches(self.micro_batch)

    def setup(self, stage: str) -> None:
        """Lightning's hook; prepares training if that was not done yet.

        Raises:
            ValueError: Trainer, data and model do not fit together.
        """
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        if stage != "fit":
            data.eval_test.check_encoder(self.model.encoder.spec)
            return
        check_trainer(self.trainer, self.rounds)
        if self.aggregation.always_steps:
            check_monitors(self.trainer)
        if self._prepared is not data:
            self.prepare(data)

    def prepare(self, data: ImageData | ClientData) -> None:
        """Builds server and resident client from the data module's federation.

        Raises:
            ValueError: Data and model do not fit together.
        """
        if not isinstance(data, ClientData):
            raise ValueError(f"FederatedSSL needs FederatedData or FederatedText, got {type(data).__name__}")
        super().prepare(data)
        if max(len(images) for images in data.federation.clients) < 2:
            raise ValueError("no client has two images to contrast: use fewer clients or more images")
        if self.calibration and data.federation.auxiliary:
            data.federation.auxiliary.check_encoder(self.model.encoder.spec)
            self.model.method.check_labels(data.federation.auxiliary.labels)
        self._prepared = data
        profiles = self.devices.profiles(data.num_clients, self.seed) if self.devices else []
        memory = self.memory.rule(self.predictor, data.federation.sizes, self.batch_size, profiles)
        self.server = self._make_server(data.federation, memory)
        if memory:
            memory.check(self.server.least_stages())
        if self.bank:
            shares = [each for stage in self.server.stages for each in typical_choices(self.scheme, stage, self.seed)]
            self.predictor().check_bank(shares, max(data.federation.sizes))
        self.local = self.local_update(self._recall, memory.plans(self.seed) if memory else None)

    def local_update(self, recall: Callable[[str, str], Tensors], plans: ClientPlans | None = None) -> LocalUpdate:
        """A resident model for clients, whose frozen parts ``recall`` gives; ``plans`` keep a memory budget."""
        return LocalUpdate(
            self.build(),
            self.local_epochs,
            self.batch_size,
            self.alignment,
            self.proximal,
            self.start,
            self.seed,
            recall,
            plans or self.memory.plans(self.predictor, self.batch_size, self.seed),
            self.bank,
        )

    def eligibility(self) -> list[Eligibility]:
        """Who can train each stage; empty without devices."""
        assert self.server is not None
        fleet = self.server.participation.fleet
        return fleet.eligibility(self.server.least_stages()) if fleet else []

    def configure_optimizers(self) -> Optimizer:
        """The server optimizer; it steps once a round."""
        assert self.server is not None
        return self.server.optimizer

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Clients move their own batches."""
        return batch

    def on_fit_start(self) -> None:
        """Lightning's hook; brings the resident client to the device."""
        assert self.local is not None
        assert self.server is not None
        self._ranks = None
        self.model.to(self.device)
        self.local.model.to(self.device)
        for times in (self.times, self.server.times, self.local.book.times):
            times.device = self.device
        start_device_peak(self.device)

    def on_train_start(self) -> None:
        """Lightning's hook; a run that had ended before its last possible round does not go on when resumed."""
        assert self.server is not None
        if self.server.done:
            self.trainer.should_stop = True

    def on_fit_end(self) -> None:
        """Lightning's hook; another fit starts with a new server."""
        super().on_fit_end()
        self._prepared = None

    def _progress(self) -> RunProgress:
        assert self.server is not None
        server, reason = self.server, "" if self.server.done else reason_of_end(self.trainer)
        incomplete, untrained = server.open_stages()
        begun = [stage for stage in server.stages if server.stage_rounds[stage.index]]
        trained = {block for stage in begun for block in stage.trained}
        return RunProgress(
            "rounds",
            server.round,
            self.rounds,
            server.done,
            len(server.stages),
            incomplete,
            untrained,
            (len(trained), len(self.model.encoder.blocks)),
            reason,
        )

    def training_step(self, batch: ClientDatasets, batch_idx: int) -> None:
        """One communication round with the clients whose data the batch has."""
        assert self.server is not None
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        engine = self.engine or self._processes(batch)
        engine.gather(self.server)
        cohort = self.server.begin_round()
        report = self.server.absorb(self._announced(engine.train(self.server, cohort), cohort), optimizer.step)
        for failure in report.failures:
            logger.warning(
                "round %d: the update of client %d is dropped: %s", report.round, failure.client_id, failure.reason
            )
        if not report.trained:
            logger.warning(
                "round %d: nobody was trained; dropped out: %d, too small a device: %d, out of reach: %d, failed: %d, "
                "late: %d",
                *(report.round, len(report.dropped), len(report.ineligible), len(report.unavailable)),
                *(len(report.failures), len(report.late)),
            )
        self.last_report = report
        self._log(report, engine)
        if self.server.done:
            self._end_run()

    def _processes(self, federation: ClientDatasets) -> Ranks:
        """The processes of this run; a fit has the same ones in all its rounds."""
        assert self.local is not None
        if self._ranks is None:
            rank, world_size = self.trainer.global_rank, self.trainer.world_size
            self._ranks = Ranks(self.local, federation.clients, rank, world_size)
        return self._ranks

    def _end_run(self) -> None:
        """Stops the trainer; a run that ends early is validated at its end, whatever the interval."""
        assert self.server is not None
        if not any(cost.rounds for cost in self.server.ledger.clients.values()):
            raise AllClientsFailedError(
                f"no client was trained in any of {self.server.round} rounds: raise model.participation, lower "
                f"model.dropout ({self.dropout}), or give devices more memory, time or availability"
            )
        self.trainer.should_stop = True
        if self.server.round < self.rounds:
            self.trainer.check_val_every_n_epoch = 1

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what Lightning does not know: the server's books and what clients remember."""
        assert self.server is not None
        assert self.local is not None
        super().on_save_checkpoint(checkpoint)
        checkpoint["server"] = self.server.state_dict()
        checkpoint["local"] = self.local.state_dict()
        checkpoint["depth"] = self.model.encoder.depth
        checkpoint["seconds"] = self.times.seconds()
        checkpoint["data"] = self._data_settings()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores it.

        Raises:
            ValueError: The checkpoint is of another run.
        """
        super().on_load_checkpoint(checkpoint)
        with restoring():
            self.model.encoder.depth = checkpoint["depth"]
            if self.server is not None and self.local is not None:
                self.server.load_state_dict(checkpoint["server"])
                self.local.load_state_dict(checkpoint["local"])
                self.times.restore(checkpoint["seconds"])
                check_same(checkpoint["data"], self._data_settings())

    def _data_settings(self) -> dict[str, Any]:
        return {"images of the clients": self.trainer.datamodule.federation.sizes}  # type: ignore[attr-defined]

    def _announced(self, results: Iterator[Result | Failure], cohort: Cohort) -> Iterator[Result | Failure]:
        for result in results:
            yield result
            if self.on_client:
                self.on_client(cohort, result.client_id)

    def _recall(self, name: str, content: str) -> Tensors:
        """In one process a frozen part that a client holds is read from the server's model."""
        return self.model.read([name])[name]

    def _make_server(self, federation: ClientDatasets, memory: MemoryRule | None) -> Server:
        parameters = dict.fromkeys(p for module in self.model.modules.values() for p in module.parameters())
        fleet, sizes = self._fleet(federation, memory), federation.sizes
        participation = Participation(sizes, self.participation, self.dropout, self.selector, fleet, self.seed)
        server = Server(
            self.model,
            self.scheme,
            self.rounds,
            participation,
            self.aggregation,
            self.server_optimizer(list(parameters)),
            self.calibration,
            federation.auxiliary,
            self.pace,
            self.seed,
        )
        server.max_update = self.max_update
        return server

    def predictor(self) -> StepPredictor:
        """Predicts local steps of this run, in a model of its own."""
        return StepPredictor(self.build(), copy.deepcopy(self.alignment), self.proximal, self.bank)

    def forecast(self, memory: MemoryRule | None = None) -> Forecast:
        """Predicts what stages of this run ask of a client, whose steps a memory rule keeps within a budget."""
        predictor, need = (memory.planner.predictor, memory.need) if memory else (self.predictor(), None)
        return Forecast(predictor.model, predictor, self.local_epochs, self.batch_size, need)

    def _fleet(self, federation: ClientDatasets, memory: MemoryRule | None) -> Fleet | None:
        if not self.devices:
            return None
        profiles = self.devices.profiles(len(federation.clients), self.seed)
        return Fleet(profiles, federation.sizes, self.forecast(memory), self.deadline)

    def _log(self, report: RoundReport, engine: Engine) -> None:
        assert self.server is not None
        seconds = {f"time/{phase}": seconds for phase, seconds in self.seconds().items()}
        metrics = round_metrics(report) | self.aggregation.metrics(report.round + 1)
        metrics |= seconds | memory_metrics(self.device)
        if self.server.participation.fleet:
            metrics["time/simulated_seconds"] = self.server.participation.fleet.now
        metrics |= engine.metrics(report)
        self.log_dict({key: float(value) for key, value in metrics.items()}, batch_size=1)

    def seconds(self) -> dict[str, float]:
        """Wall-clock seconds by phase since the run began, interrupted processes included."""
        assert self.server is not None
        assert self.local is not None
        return self.local.book.times.seconds() | self.server.times.seconds() | self.times.seconds()
