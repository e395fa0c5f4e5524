"""Base of all pretraining: the model, its evaluation and untrained counterparts. And the simplest: centralised."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from fedssl.data.clients import ClientData
from fedssl.data.datasets.pixels import Decoding
from fedssl.data.images import ImageData
from fedssl.protocol.parts import MethodFactory, PartitionedModel, build_model
from fedssl.server.lr_schedule import LRSchedule, linear_scaling
from fedssl.training.checkpoints import ORIGIN, check_origin, origin
from fedssl.training.endings import RunProgress, batches_left_out, reason_of_end, whole_epochs
from fedssl.training.export import export_encoder, export_text_encoder
from fedssl.training.processes import check_intervals, check_trains
from fedssl.utils.files import UnusableStateError, check_network, check_same, describe_optimizer, restoring
from fedssl.utils.resources import Stopwatch
from fedssl.utils.seeding import derive_seed, run_seed, torch_generator
from layerwise import CausalTransformerSpec, EncoderSpec, StagedEncoder, build_encoder
from linear_eval import EvaluatedModule, EvaluationSettings, FinetuneSettings
from ssl_methods import OptimizerFactory, TwoViews


class Pretraining(EvaluatedModule):
    """Base of the modules that the command line trains.

    Args:
        encoder: Architecture of the encoder.
        method: Self-supervised method.
        augment: Augmentation that makes two views of a batch of images; its mean and std also normalise images for
            evaluation. ``None`` for text.
        optimizer: Optimizer of local (or centralised) training.
        evaluation: Settings of the kNN and linear evaluation. A language model has none: its perplexity is evaluated.
        finetuning: Settings for fine-tuning a copy in the final evaluation; ``None`` skips it.
        seed: Seed of every random choice; ``None`` takes the run's.
        heads: File or folder with the heads to start from, such as the ``encoder`` folder of a run of the same method;
            ``None``: new ones.

    Attributes:
        progress: Progress of ``fit``; ``None`` before its end.
    """

    def __init__(
        self,
        encoder: EncoderSpec | CausalTransformerSpec,
        method: MethodFactory,
        augment: TwoViews | None,
        optimizer: OptimizerFactory,
        evaluation: EvaluationSettings = EvaluationSettings(),  # noqa: B008 (frozen)
        finetuning: FinetuneSettings | None = None,
        seed: int | None = None,
        heads: str | None = None,
    ) -> None:
        seed = run_seed(seed)
        self._recipe, self._heads = (encoder, method, augment, optimizer, seed), heads
        model = self.build()
        if not augment and (finetuning or evaluation != EvaluationSettings()):
            raise ValueError("evaluation and finetuning classify images: leave them out for text")
        super().__init__(model.encoder, evaluation, finetuning, seed)
        self.model = model
        self.augment = augment
        self.times = Stopwatch()
        self.progress: RunProgress | None = None
        # A tuple hides the network from ``nn.Module``, so that no checkpoint holds it. The weights are read now, since
        # the file may be gone when training ends.
        self._start_model = self.build() if encoder.weights and heads and not augment else None
        self._start = (("start", build_encoder(encoder, derive_seed(seed, "encoder"))),) if encoder.weights else ()

    def build(self) -> PartitionedModel:
        """Build a freshly initialised model; every call gives the same weights."""
        return build_model(*self._recipe, heads=self._heads)

    @property
    def summary(self) -> dict[str, str]:
        """Names of scheme and method, for tables and results."""
        return {"scheme": "centralized", "method": type(self.model.method).__name__}

    def normalize(self, images: Tensor) -> Tensor:
        """Normalise images as in training, without augmentation."""
        assert self.augment is not None
        return self.augment.plain(images)

    def classify(self, images: Tensor) -> Tensor | None:
        """Return class scores of the classifier trained with the encoder; ``None`` for a method without one."""
        return self.model.classify(images)

    def token_nll(self, texts: Tensor) -> Tensor | None:
        """Per-token negative log-likelihood in nats, or ``None`` for image encoders."""
        return self.model.method.token_nll(self.model.encoder, texts)

    def start_nll(self, texts: Tensor) -> Tensor | None:
        """Per-token negative log-likelihood under the loaded language model, or ``None`` if there is none."""
        if self._start_model is None:
            return None
        start = self._start_model.to(self.device)
        return start.method.token_nll(start.encoder, texts)

    def on_fit_end(self) -> None:
        """Lightning's hook; record the progress of training while the Trainer still knows it."""
        self.progress = self._progress()

    def _progress(self) -> RunProgress:
        trainer = self.trainer
        done, planned = whole_epochs(trainer), trainer.max_epochs or 0
        finished = done >= planned and not batches_left_out(trainer)
        return RunProgress("epochs", done, planned, finished, reason="" if finished else reason_of_end(trainer))

    def on_validation_start(self) -> None:
        """Lightning's hook."""
        self._evaluating = self.times("evaluation")
        self._evaluating.__enter__()

    def on_validation_end(self) -> None:
        """Lightning's hook."""
        self._evaluating.__exit__(None, None, None)

    on_test_start, on_test_end = on_validation_start, on_validation_end

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Lightning's hook; record the origin of the checkpoint."""
        checkpoint[ORIGIN] = origin(training=type(self).__name__)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Lightning's hook; check the checkpoint before any weight is overwritten.

        Raises:
            ValueError: The checkpoint belongs to a different kind of run.
        """
        try:
            check_origin(checkpoint)
        except UnusableStateError as error:
            raise ValueError(f"the checkpoint {error}") from error
        check_same(checkpoint[ORIGIN], {"training": type(self).__name__})
        check_network(checkpoint["state_dict"], self.state_dict())

    def untrained(self) -> dict[str, nn.Module]:
        """Untrained encoders to compare with: at random initialisation and, for a run that loaded weights, with these.

        The random one has the depth that the trained one has now. The loaded one keeps its full depth, since it could
        have been used as it was.
        """
        spec, seed = self._recipe[0], derive_seed(self.seed, "encoder")
        random_init = build_encoder(replace(spec, weights=None), seed)
        random_init.depth = self.model.encoder.depth
        return dict(self._start) | {"random_init": random_init}

    def layers(self, encoder: nn.Module) -> dict[str, nn.Module]:
        """Stem and present blocks of an encoder, by name."""
        assert isinstance(encoder, StagedEncoder)
        blocks = encoder.blocks[: encoder.depth]
        return {"stem": encoder.stem} | {f"block {index + 1}": block for index, block in enumerate(blocks)}

    def prepare(self, data: ImageData | ClientData) -> None:
        """Check that the data fit the model, before training starts.

        Raises:
            ValueError: They do not fit.
        """
        if data.no_evaluation and self.finetuning:
            raise ValueError(f"model.finetuning needs labels, but {data.no_evaluation}: set --data.eval_dataset")
        for samples in (data.pool,) if data.no_evaluation else (data.eval_test, data.pool):
            samples.check_encoder(self.model.encoder.spec)
        self.model.method.check_labels(data.pool.labels)

    def export(self, folder: Path, decoding: Decoding | None = None) -> None:
        """Write the encoder: one of images for timm, one of text for ``layerwise.CausalTransformerSpec``.

        Args:
            folder: Destination; replaced if it exists.
            decoding: Conversion of the images' files, noted beside the encoder.
        """
        encoder = self.model.encoder
        heads = self.model.method.heads()
        training = self.progress.as_dict() | {"blocks_present": encoder.depth} if self.progress else None
        if self.augment:
            mean, std = list(self.augment.mean), list(self.augment.std)
            export_encoder(encoder, folder, mean, std, training, heads, decoding)
        else:
            export_text_encoder(encoder, folder, training, heads)


class CentralizedSSL(Pretraining):
    """Training of the whole encoder on all images in one place; the yardstick of the federated schemes.

    Gradients are clipped by Lightning's ``trainer.gradient_clip_val``.

    Args:
        *args: Arguments of ``Pretraining``.
        base_batch_size: Batch that the optimizer's learning rate is meant for: lr * data.batch_size / base_batch_size
            is used. ``None``: lr.
        lr_schedule: Warm-up and cosine of the learning rate over the epochs; constant by default.
        **kwargs: Keyword arguments of ``Pretraining``.
    """

    def __init__(
        self,
        *args: Any,
        base_batch_size: int | None = None,
        lr_schedule: LRSchedule = LRSchedule(),  # noqa: B008 (frozen)
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.base_batch_size = base_batch_size
        self.lr_schedule = lr_schedule
        self.method = self.model.method
        if self.method.dense:
            self.model.attach_whole(self.model.whole_stage())
        self.method.begin_client()

    def setup(self, stage: str) -> None:
        """Check that images and encoder fit.

        Raises:
            ValueError: They do not fit, the data are divided among clients, or the run has several processes.
        """
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        if self.trainer.world_size > 1:
            raise ValueError(
                f"CentralizedSSL runs on one device, got {self.trainer.world_size}: set trainer.devices to 1"
            )
        check_intervals(self.trainer)
        if stage != "fit":
            data.eval_test.check_encoder(self.model.encoder.spec)
            return
        if isinstance(data, ClientData):
            raise ValueError(
                f"CentralizedSSL needs ImageData, got {type(data).__name__}: use FederatedSSL with one client"
            )
        check_trains(self.trainer)
        if not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            self.lr_schedule.check_length(self._epochs, "epochs of trainer.max_epochs")
        factory = self._recipe[3]
        self.method.optimizer_factory = linear_scaling(factory, data.batch_size, self.base_batch_size)
        self.prepare(data)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the settings that a resumed run must share."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["run"] = self._settings()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Compare the settings of the checkpoint with those of this run.

        Raises:
            ValueError: The checkpoint belongs to another run.
        """
        super().on_load_checkpoint(checkpoint)
        if self.trainer.state.fn == TrainerFn.FITTING:
            with restoring():
                check_same(checkpoint["run"], self._settings())

    def _settings(self) -> dict[str, Any]:
        optimizer = describe_optimizer(self.method.configure_optimizers())
        settings = {"method": type(self.method).__name__, "optimizer": optimizer, "seed": self.seed}
        decays = self.lr_schedule.cosine_to is not None
        return settings | ({"epochs of the cosine": self._epochs} if decays else {})

    @property
    def _epochs(self) -> int:
        """Epochs that the schedule takes.

        Raises:
            ValueError: The schedule needs their number, and the Trainer has none.
        """
        epochs = self.trainer.max_epochs
        assert epochs is not None
        if epochs < 0 and self.lr_schedule != LRSchedule():
            raise ValueError("model.lr_schedule goes by epochs: set trainer.max_epochs, not trainer.max_steps alone")
        return epochs if epochs >= 0 else 1

    def on_train_epoch_start(self) -> None:
        """Seed every epoch on its own, so that a resumed run continues as it would have."""
        epoch, device = self.current_epoch, self.device
        self.method.generator = torch_generator(self.seed, "centralized augment", epoch, device=device)
        torch.manual_seed(derive_seed(self.seed, "centralized", self.current_epoch))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor | None:
        """Compute the method's loss."""
        loss = self.method.training_step(batch, batch_idx)
        if loss is not None:
            self.log("train/loss", loss.detach(), on_step=False, on_epoch=True, batch_size=len(batch[0]))
            if not torch.isfinite(loss):
                raise ArithmeticError(f"loss {loss.item()} in step {self.global_step}")
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step the optimizer, then update momentum targets from the new weights."""
        super().optimizer_step(*args, **kwargs)
        self.method.after_step()

    def configure_optimizers(self) -> tuple[list[Optimizer], list[LambdaLR]]:
        """Create the method's optimizer, and its schedule over the epochs."""
        optimizer, epochs = self.method.configure_optimizers(), self._epochs
        return [optimizer], [LambdaLR(optimizer, lambda done: self.lr_schedule.factor(done, epochs))]
