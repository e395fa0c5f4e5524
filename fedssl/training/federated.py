"""Federated pretraining: a round is one training step of a Lightning Trainer."""

from __future__ import annotations

import logging
from typing import Any

import torch
from pytorch_lightning.core.optimizer import LightningOptimizer
from torch import nn
from torch.optim import Optimizer

from fedssl.client.bank import ActivationBank
from fedssl.client.start import StartRule
from fedssl.data.clients import ClientData, ClientDatasets
from fedssl.data.images import ImageData
from fedssl.devices import Deadline, DeviceSource
from fedssl.federation.federation import Engine, Federation
from fedssl.federation.settings import (
    CohortSettings,
    FederationSettings,
    LocalSettings,
    ModelSettings,
    ServerSettings,
    sgd,
)
from fedssl.memory_budget.setting import MemoryBudget
from fedssl.protocol.compression import Compression
from fedssl.protocol.parts import MethodFactory, PartitionedModel
from fedssl.server.aggregation import Aggregation, WeightedMean
from fedssl.server.calibration import Calibration
from fedssl.server.lr_schedule import LRSchedule, linear_scaling
from fedssl.server.rounds import RoundReport, round_metrics
from fedssl.server.selection import Selector
from fedssl.server.server import AllClientsFailedError
from fedssl.server.updates import MAX_UPDATE
from fedssl.training.endings import RunProgress, reason_of_end
from fedssl.training.pretraining import Pretraining
from fedssl.training.process_engine import ProcessEngine
from fedssl.training.processes import check_monitors, check_trainer
from fedssl.utils.files import check_same, restoring
from fedssl.utils.resources import memory_metrics, start_device_peak
from fedssl.utils.seeding import run_seed
from layerwise import BlockPerturbation, CausalTransformerSpec, EncoderSpec, Scheme
from linear_eval import EvaluationSettings, FinetuneSettings
from ssl_methods import OptimizerFactory, TwoViews
from ssl_methods.alignment import Alignment

logger = logging.getLogger(__name__)


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
        base_batch_size: Batch that the optimizer's learning rate is meant for: clients use lr * batch_size /
            base_batch_size. ``None``: they use lr.
        lr_schedule: Warm-up and cosine of the clients' learning rate over the rounds; constant by default.
        gradient_clip_norm: Largest L2 norm of a local step's gradient, over all trained layers together, alignment,
            proximal term and corrections included; ``None``: no limit.
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
        compression: Packs what clients send (BFloat16, EightBit, TopK); ``None`` sends the weights.
        clients_at_once: Most clients that a process trains together, with stacked weights; those with as many samples
            as another are.
        calibration: Server-side calibration on auxiliary images; ``None`` switches it off.
        aggregation: How the clients' results become one.
        max_update: Most that a tensor of a client's update may change, as a root mean square and in units of one plus
            that of the global tensor, or the client is dropped. Honest training stays far below the default.
        measure_distance: Measure in every round how far the local models are apart (metric ``client/distance``).
        server_optimizer: Steps the global model along ``global - aggregate``: SGD with lr 1 is FedAvg, with
            momentum FedAvgM, Adam FedAdam.
        evaluation: Neighbours and probe.
        finetuning: Fine-tunes a copy in the final evaluation; ``None`` does not.
        seed: Seed of every random choice; ``None`` takes the run's.
        heads: File or folder with the heads to start from, such as the ``encoder`` folder of a run of the same method;
            ``None``: new ones.
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
        base_batch_size: int | None = None,
        lr_schedule: LRSchedule = LRSchedule(),  # noqa: B008 (frozen)
        gradient_clip_norm: float | None = None,
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
        compression: Compression | None = None,
        clients_at_once: int = 1,
        calibration: Calibration | None = None,
        aggregation: Aggregation = WeightedMean(),  # noqa: B008 (a round starts it anew)
        max_update: float = MAX_UPDATE,
        measure_distance: bool = False,
        server_optimizer: OptimizerFactory = sgd,
        evaluation: EvaluationSettings = EvaluationSettings(),  # noqa: B008 (frozen)
        finetuning: FinetuneSettings | None = None,
        seed: int | None = None,
        heads: str | None = None,
    ) -> None:
        seed, encoder = run_seed(seed), scheme.adapt(encoder)
        optimizer = linear_scaling(optimizer, batch_size, base_batch_size)
        model = ModelSettings(
            encoder=encoder,
            method=method,
            augment=augment,
            optimizer=optimizer,
            micro_batch=micro_batch,
            heads=heads,
        )
        local = LocalSettings(
            epochs=local_epochs,
            batch_size=batch_size,
            alignment=alignment,
            proximal=proximal,
            lr_schedule=lr_schedule,
            gradient_clip_norm=gradient_clip_norm,
            start=start,
            bank=bank,
            memory=MemoryBudget.parse(memory_budget, devices),
            compression=compression,
            clients_at_once=clients_at_once,
        )
        cohort = CohortSettings(
            participation=participation, dropout=dropout, selector=selector, devices=devices, deadline=deadline
        )
        server = ServerSettings(
            aggregation=aggregation,
            max_update=max_update,
            optimizer=server_optimizer,
            calibration=calibration,
            pace=pace,
            measure_distance=measure_distance,
        )
        self.settings = FederationSettings(
            model=model, scheme=scheme, rounds=rounds, local=local, cohort=cohort, server=server, seed=seed
        )
        super().__init__(encoder, method, augment, optimizer, evaluation, finetuning, seed, heads)
        self.settings.check(self.model)
        self.automatic_optimization = False  # the server steps its optimizer, once a round
        # The model is no module: what it has beside the encoder is registered here, for the device and checkpoints.
        self.heads = nn.ModuleDict(self.model.method.heads())
        self.states = nn.ModuleDict(self.model.method.state_parts())
        self.federation: Federation | None = None
        self.engine: Engine | None = None
        self.last_report: RoundReport | None = None
        self._prepared: ClientData | None = None

    @property
    def summary(self) -> dict[str, str]:
        """Scheme and method, for tables and results."""
        return super().summary | {"scheme": self.settings.scheme.name}

    def build(self) -> PartitionedModel:
        """Build a freshly initialised model."""
        return self.settings.build()

    def setup(self, stage: str) -> None:
        """Lightning's hook; prepare training if that was not done yet.

        Raises:
            ValueError: Trainer, data and model do not fit together.
        """
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        if stage != "fit":
            data.eval_test.check_encoder(self.model.encoder.spec)
            return
        check_trainer(self.trainer, self.settings.rounds)
        if self.settings.server.aggregation.always_steps:
            check_monitors(self.trainer)
        if self._prepared is not data:  # the command line prepares earlier, to refuse a run before it has a folder
            self.prepare(data)

    def prepare(self, data: ImageData | ClientData) -> None:
        """Build the federation of the data module's clients.

        Raises:
            ValueError: Data and model do not fit together.
        """
        if not isinstance(data, ClientData):
            raise ValueError(f"FederatedSSL needs FederatedData or FederatedText, got {type(data).__name__}")
        super().prepare(data)
        clients = data.datasets
        if max(clients.sizes) < 2:
            raise ValueError("no client has two images to contrast: use fewer clients or more images")
        if self.settings.server.calibration and clients.auxiliary:
            clients.auxiliary.check_encoder(self.model.encoder.spec)
            self.model.method.check_labels(clients.auxiliary.labels)
        self.federation = Federation(self.settings, clients.sizes, model=self.model, auxiliary=clients.auxiliary)
        self.federation.check_devices()
        self.federation.check_memory()
        self._prepared = data

    @property
    def _running(self) -> Federation:
        assert self.federation is not None
        return self.federation

    def configure_optimizers(self) -> Optimizer:
        """Return the server optimizer; it steps once a round."""
        return self._running.server.optimizer

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Leave the batch where it is: clients move their own."""
        return batch

    def on_fit_start(self) -> None:
        """Lightning's hook; bring the resident client to the device."""
        server, client = self._running.server, self._running.client
        clients = self.trainer.datamodule.datasets.clients  # type: ignore[attr-defined]
        self._processes = ProcessEngine(client, clients, self.trainer.global_rank, self.trainer.world_size)
        self.model.to(self.device)
        client.model.to(self.device)
        for times in (self.times, server.times, client.book.times):
            times.device = self.device
        start_device_peak(self.device)

    def on_train_start(self) -> None:
        """Lightning's hook; a run that had ended before its last possible round does not go on when resumed."""
        if self._running.server.done:
            self.trainer.should_stop = True

    def on_fit_end(self) -> None:
        """Lightning's hook; another fit starts with a new federation."""
        super().on_fit_end()
        self._prepared = None

    def training_step(self, batch: ClientDatasets, batch_idx: int) -> None:
        """Run one communication round; the batch is all clients."""
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        engine = self.engine or self._processes
        report = self._running.round(engine, optimizer.step)
        _warn(report)
        self.last_report = report
        self._log(report, engine)
        if self._running.server.done:
            self._end_run()

    def seconds(self) -> dict[str, float]:
        """Return wall-clock seconds by phase since the run began, interrupted processes included."""
        server, client = self._running.server, self._running.client
        return client.book.times.seconds() | server.times.seconds() | self.times.seconds()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what Lightning does not know: the server's books and what clients remember."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["server"] = self._running.server.state_dict()
        checkpoint["local"] = self._running.client.state_dict()
        checkpoint["depth"] = self.model.encoder.depth
        checkpoint["seconds"] = self.times.seconds()
        checkpoint["data"] = self._data_settings()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore it.

        Raises:
            ValueError: The checkpoint belongs to another run.
        """
        super().on_load_checkpoint(checkpoint)
        with restoring():
            self.model.encoder.depth = checkpoint["depth"]
            if self.federation is not None:
                self.federation.server.load_state_dict(checkpoint["server"])
                self.federation.client.load_state_dict(checkpoint["local"])
                self.times.restore(checkpoint["seconds"])
                check_same(checkpoint["data"], self._data_settings())

    def _data_settings(self) -> dict[str, Any]:
        return {"images of the clients": self.trainer.datamodule.datasets.sizes}  # type: ignore[attr-defined]

    def _log(self, report: RoundReport, engine: Engine) -> None:
        server = self._running.server
        metrics = round_metrics(report) | server.aggregation.metrics(report.round + 1)
        metrics |= {f"time/{phase}": seconds for phase, seconds in self.seconds().items()}
        metrics |= memory_metrics(self.device)
        if server.participation.fleet:
            metrics["time/simulated_seconds"] = server.participation.fleet.now
        metrics |= engine.metrics(report)
        self.log_dict({key: float(value) for key, value in metrics.items()}, batch_size=1)

    def _end_run(self) -> None:
        """Stop the trainer; a run that ends early is validated at its end, whatever the interval."""
        server = self._running.server
        if not any(cost.rounds for cost in server.ledger.clients.values()):
            raise AllClientsFailedError(
                f"no client was trained in any of {server.round} rounds: raise model.participation, lower "
                f"model.dropout ({self.settings.cohort.dropout}), or give devices more memory, time or availability"
            )
        self.trainer.should_stop = True
        if server.round < self.settings.rounds:
            self.trainer.check_val_every_n_epoch = 1

    def _progress(self) -> RunProgress:
        server = self._running.server
        incomplete, untrained = server.open_stages()
        begun = [stage for stage in server.stages if server.stage_rounds[stage.index]]
        trained = {block for stage in begun for block in stage.trained}
        blocks = len(trained), len(self.model.encoder.blocks)
        reason = "" if server.done else reason_of_end(self.trainer)
        counts = server.round, self.settings.rounds, server.done, len(server.stages)
        return RunProgress("rounds", *counts, incomplete, untrained, blocks, reason)


def _warn(report: RoundReport) -> None:
    """Warn of dropped updates, and of a round that trained nobody."""
    for failure in report.failures:
        where = report.round, failure.client_id
        logger.warning("round %d: the update of client %d is dropped: %s", *where, failure.reason)
    if not report.trained:
        logger.warning(
            "round %d: nobody was trained; dropped out: %d, too small a device: %d, out of reach: %d, failed: %d, "
            "late: %d",
            *(report.round, len(report.dropped), len(report.ineligible), len(report.unavailable)),
            *(len(report.failures), len(report.late)),
        )
