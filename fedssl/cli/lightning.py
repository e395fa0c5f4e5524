"""Command line of a run: Lightning's, with a run folder, exact resume and results."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import Namespace, get_loader, set_loader
from pytorch_lightning import LightningDataModule
from pytorch_lightning.callbacks import Checkpoint, ProgressBar, Timer
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.trainer import Trainer
from pytorch_lightning.utilities import rank_zero_only

from fedssl.cli.arguments import SUBCOMMANDS, UsageError, run_name
from fedssl.cli.errors import BriefParser, blame_settings, check_nulls
from fedssl.cli.names import check_class_paths
from fedssl.data.clients import ClientData
from fedssl.planning.command import PlanningTrainer
from fedssl.runs.changed_settings import changed_settings, check_changes, deciding_settings, flatten, notes_of_run
from fedssl.runs.lifecycle import RunBeginning, finish_fit, finish_test
from fedssl.runs.run_folder import (
    AUTO,
    CHECKPOINTS,
    CONFIG,
    RESULTS,
    choose_run_folder,
    find_checkpoint,
    is_finished,
    open_run_folder,
)
from fedssl.training.checkpoints import ORIGIN, AtomicCheckpointIO, RoundCheckpoint, read_checkpoint
from fedssl.training.endings import OUT_OF_TIME, HearSignals, out_of_time
from fedssl.training.federated import FederatedSSL
from fedssl.training.pretraining import Pretraining
from fedssl.training.processes import check_trainer, process_rank, process_settings
from fedssl.training.progress import RoundProgress, working
from linear_eval import EvaluatedModule

RUN_DIR_HELP = "Folder of the run; by default the next free runs/<name of the configuration>/<number>."
CHANGED_HELP = "Whether a run may go on from a checkpoint that was made with other settings."
IMAGES_HELP = (
    "Whether images of the data stand in report.html, details.npz and Weights & Biases; by default those of public "
    "data sets only."
)

# jsonargparse passes null as the text "None" to a class within a class.
_load_yaml = get_loader("yaml")

set_loader("yaml", lambda text: None if text == "None" else _load_yaml(text), exceptions=(yaml.YAMLError,))


class FedSSLCLI(LightningCLI):
    """LightningCLI with one folder a run, exact resume and results at the end; its constructor runs the command.

    Args:
        arguments: Sub-command and settings, as completed by ``prepare_arguments``.
    """

    def __init__(self, arguments: list[str]) -> None:
        self.arguments = arguments
        few = {"devices": 1, "num_sanity_val_steps": 0, "log_every_n_steps": 1, "enable_model_summary": False}
        with ExitStack() as self._until_the_end:
            super().__init__(
                EvaluatedModule,
                LightningDataModule,
                args=arguments,
                parser_class=BriefParser,
                parser_kwargs={"description": "Federated self-supervised learning. See also: train.py compare --help"},
                trainer_class=PlanningTrainer,
                trainer_defaults=few,
                subclass_mode_model=True,
                subclass_mode_data=True,
                save_config_callback=None,
                seed_everything_default=42,
                auto_configure_optimizers=False,
                load_from_checkpoint_support=False,
            )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """``fit``, ``validate``, ``test`` and ``plan``."""
        every = LightningCLI.subcommands() | {"plan": {"model", "datamodule"}}
        return {name: every[name] for name in SUBCOMMANDS}

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Require a number as the seed: nobody could repeat a run without one."""
        parser.add_argument("--seed_everything", type=int, default=42, help="Seed of every random choice.")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the settings of the run folder and of the output."""
        parser.add_argument("--run_dir", type=str | None, default=None, help=RUN_DIR_HELP)
        parser.add_argument("--changed_settings", type=Literal["refuse", "accept"], default="refuse", help=CHANGED_HELP)
        parser.add_argument("--show_images", type=bool | None, default=None, help=IMAGES_HELP)
        parser.add_argument("-v", "--more", action="store_true", help="Show every round, and why clients gave nothing.")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse as Lightning does, and report a misshapen configuration in one line instead of a traceback."""
        with blame_settings():
            self.config = parser.parse_args(args)
        trainer = self.config[self.config.subcommand].trainer
        if not isinstance(trainer, Namespace):
            raise ValueError(f"trainer: expected a mapping of settings, got {trainer}")

    def instantiate_classes(self) -> None:
        """Check class paths and nulls, then build the classes as Lightning does."""
        check_class_paths(self.config)
        check_nulls(self._config)
        with blame_settings(self._config):
            super().instantiate_classes()

    def before_instantiate_classes(self) -> None:
        """Find run folder and checkpoint, and derive ``max_epochs`` from the model's rounds."""
        config = self._config
        ckpt_path = config.get("ckpt_path")
        self.folder = self._open_run_folder(config.run_dir, ckpt_path)
        if ckpt_path == AUTO and is_finished(self.folder):
            sys.exit(self._say_finished())
        checkpoint = find_checkpoint(ckpt_path, self.folder)
        made = read_checkpoint(checkpoint) if checkpoint else None
        if ckpt_path:
            config.ckpt_path = str(checkpoint) if checkpoint else None
        self._set_rounds()
        self._notes: dict[str, Any] = {}
        if self.subcommand == "fit":
            self._compare_settings(made)

    def _compare_settings(self, made: dict[str, Any] | None) -> None:
        """Refuse settings that differ from the checkpoint's, unless the user accepts the change."""
        # Reset before the configuration is written: a later resume must ask again.
        accept, self._config.changed_settings = self._config.changed_settings == "accept", "refuse"
        self._dump_config()
        if made:
            made[ORIGIN]["settings"] = self._later_settings() | made[ORIGIN].get("settings", {})
        self._notes = notes_of_run(self.config_dump, made)
        changed = changed_settings(self._notes["settings"], made) if made else {}
        check_changes(changed, accept)
        for name, (then, now) in changed.items() if process_rank() == 0 else ():
            print(f"resumed with another {name}: {then} before, {now} now", file=sys.stderr)

    def _later_settings(self) -> dict[str, Any]:
        """Return today's defaults of the settings that are absent from the run's configuration.

        An earlier version did not have them, and ran as their defaults do: a later one can resume it.
        """
        path = self.folder / CONFIG
        if not path.exists():
            return {}
        written, parser = flatten(yaml.safe_load(path.read_text())), self._parser("fit")
        try:
            now = yaml.safe_load(parser.dump(parser.parse_path(path), skip_link_targets=False))
        except UsageError:
            return {}  # it has settings that are gone: the differences will name them
        return {name: value for name, value in deciding_settings(now).items() if name not in written}

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Add run folder, loggers, checkpoints and progress display to the configured trainer."""
        configured = self._get(self.config_init, "trainer")
        if configured["default_root_dir"] is not None:
            raise ValueError("trainer.default_root_dir has no effect, everything is in the run folder: set --run_dir")
        callbacks, plugins = _as_list(configured["callbacks"]), _as_list(configured["plugins"])
        wanted = configured["enable_checkpointing"] is not False
        if wanted and not any(isinstance(callback, Checkpoint) for callback in callbacks):
            callbacks.append(RoundCheckpoint(self.folder / CHECKPOINTS))
        shown = configured["enable_progress_bar"] is not False
        if shown and not any(isinstance(callback, ProgressBar) for callback in callbacks):
            callbacks.append(RoundProgress(self._config.more))
        loggers = []
        if self._writes:
            self._dump_config()
            use_wandb = configured["logger"] in (None, True)
            beginning = RunBeginning(self.folder, self.config_dump, self._notes["changes"], use_wandb)
            callbacks.append(beginning)
            loggers = [beginning.csv, *_as_list(configured["logger"])]
        if configured["max_time"] and not any(isinstance(callback, Timer) for callback in callbacks):
            # Lightning's own timer stops within an epoch, and a resumed run would take that epoch for a whole one.
            callbacks.append(Timer(configured["max_time"], interval="epoch"))
        return super().instantiate_trainer(
            max_time=None,
            default_root_dir=str(self.folder),
            logger=loggers,
            callbacks=[HearSignals(), *callbacks],
            plugins=[*plugins, AtomicCheckpointIO(self._notes)],
            **process_settings(configured["strategy"], configured["devices"]),
            **kwargs,
        )

    def before_fit(self) -> None:
        """Load the data, check that model and data fit, and print the division of the data."""
        self._started = time.perf_counter()
        if isinstance(self.model, FederatedSSL):
            check_trainer(self.trainer, self.model.settings.rounds)
        self.datamodule.setup("fit")
        if self.datamodule.no_evaluation:
            self.trainer.limit_val_batches = 0  # else Lightning warns of loaders without batches
        if isinstance(self.model, Pretraining):
            with working("preparing"):
                self.model.prepare(self.datamodule)
        self._describe()

    def after_fit(self) -> None:
        """Evaluate, export the encoder and print the results."""
        if self._config.trainer.fast_dev_run:
            return
        if isinstance(self.model, Pretraining) and not self.trainer.global_step:
            reason = self.model.progress.reason if self.model.progress else ""
            raise ValueError("nothing was trained" + (f": {reason}" if reason else ""))
        if not self.datamodule.no_evaluation:
            self.trainer.test(self.model, datamodule=self.datamodule, verbose=False)
        self._finish()
        if out_of_time(self.trainer):
            sys.exit(self._say_out_of_time())

    def before_test(self) -> None:
        """Start the clock."""
        self._started = time.perf_counter()

    def after_test(self) -> None:
        """Print and store the results of the evaluation."""
        if not process_rank():
            finish_test(self.model, self.folder, time.perf_counter() - self._started)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        """Suppress Lightning's table of test metrics: ours follows."""
        quiet = {"verbose": False} if subcommand == "test" else {}
        return super()._prepare_subcommand_kwargs(subcommand) | quiet

    @rank_zero_only
    def _finish(self) -> None:
        seconds, changes = time.perf_counter() - self._started, self._notes["changes"]
        finish_fit(self.model, self.datamodule, self.folder, seconds, changes, self._config.show_images)

    @rank_zero_only
    def _describe(self) -> None:
        if isinstance(self.datamodule, ClientData):
            print(self.datamodule.table(), file=sys.stderr)
        if isinstance(self.model, FederatedSSL) and self.model.federation:
            for stage in self.model.federation.eligibility():
                print(stage, file=sys.stderr)

    def _open_run_folder(self, run_dir: str | None, ckpt_path: str | None) -> Path:
        """Run folder; a run that writes locks it until this process ends."""
        parent = Path("runs") / run_name(self.arguments)
        if ckpt_path == AUTO and self.subcommand != "fit":
            raise ValueError(f"--ckpt_path auto begins or resumes a fit: {self.subcommand} needs last or a file")
        begins = self._writes or (self.subcommand == "test" and ckpt_path is None)
        if not begins or process_rank():
            return choose_run_folder(run_dir, ckpt_path, parent)
        return self._until_the_end.enter_context(open_run_folder(run_dir, ckpt_path, parent))

    @rank_zero_only
    def _say_finished(self) -> None:
        print(f"{self.folder} is finished: its results are in {self.folder / RESULTS}")

    def _say_out_of_time(self) -> int:
        if not process_rank():
            rounds, longer = self.trainer.current_epoch, f"--run_dir {self.folder} --ckpt_path auto"
            said = f"stopped after {rounds} rounds by trainer.max_time; a longer one goes on with {longer}"
            print(said, file=sys.stderr)
        return OUT_OF_TIME

    @property
    def _writes(self) -> bool:
        """Tell if this sub-command trains and leaves a run folder."""
        return self.subcommand == "fit" and not self._config.trainer.fast_dev_run

    @property
    def _config(self) -> Any:
        return self.config[self.subcommand]

    def _set_rounds(self) -> None:
        """Set the number of epochs to the number of rounds: a federated round is an epoch."""
        rounds = self._config.model.get("init_args", {}).get("rounds")
        if rounds is None:
            return
        given = self._config.trainer.max_epochs
        if given not in (None, rounds):
            raise ValueError(f"trainer.max_epochs {given} differs from model.rounds {rounds}: leave it out")
        self._config.trainer.max_epochs = rounds

    def _parse_ckpt_path(self) -> None:
        """Do nothing: Lightning reads hyper-parameters from the checkpoint here, and ours has none."""


def _as_list(value: Any) -> list[Any]:
    if isinstance(value, list):
        return list(value)
    return [] if value in (None, True, False) else [value]
