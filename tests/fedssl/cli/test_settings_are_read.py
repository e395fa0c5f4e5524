"""Every setting of a run is read by something, or refused."""

import inspect
import re
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from pytorch_lightning import LightningDataModule, Trainer
from tiny_runs import ROOT
from torch.optim import SGD

from fedssl import CentralizedSSL, FederatedData, FederatedSSL, FederatedText, ImageData
from fedssl.cli.names import OWN, PLACES, _below
from fedssl.training.processes import LEAST, UNREAD, check_intervals, check_trainer
from layerwise import EncoderSpec, EndToEnd
from linear_eval import EvaluationSettings, FinetuneSettings
from ssl_methods import DigitsViews, SimCLR

READ = {
    "accelerator", "strategy", "devices", "num_nodes", "precision", "logger", "callbacks", "fast_dev_run", "max_epochs",
    "max_steps", "max_time", "limit_val_batches", "limit_test_batches", "check_val_every_n_epoch",
    "num_sanity_val_steps", "log_every_n_steps", "enable_checkpointing", "enable_progress_bar", "enable_model_summary",
    "deterministic", "benchmark", "inference_mode", "use_distributed_sampler", "profiler", "detect_anomaly",
    "barebones", "plugins", "enable_autolog_hparams", "model_registry",
}  # fmt: skip
"""Flags of the Trainer that mean in a federated run what they say."""
REFUSED_ELSEWHERE = {"sync_batchnorm", "default_root_dir"}
KEPT_AS = {
    "fit": "decoding", "background": "decoding", "window": "decoding",
    "clients": "num_clients", "eval_train_split": "eval_splits", "eval_test_split": "eval_splits",
    "local_epochs": "epochs", "memory_budget": "memory", "server_optimizer": "optimizer",
}  # fmt: skip
GROUPS = ("model", "local", "cohort", "server")
TEXT = {"validation_fraction": "fractions", "test_fraction": "fractions"}


def watched(thing: Any, read: set[str]) -> Any:
    """The same, noting which of its attributes are read from now on."""

    def note(self: Any, name: str) -> Any:
        read.add(name)
        return super(type(thing), self).__getattribute__(name)

    kind = type(thing)
    object.__setattr__(thing, "__class__", type(kind.__name__, (kind,), {"__getattribute__": note}))
    return thing


def settings(*kinds: Any) -> set[str]:
    """What can be set."""
    named = {p.name for kind in kinds for p in inspect.signature(kind).parameters.values() if p.kind != p.VAR_KEYWORD}
    return named - {"args"}


def run(module: Any, data: LightningDataModule) -> None:
    """Trains and evaluates."""
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", enable_checkpointing=False, max_epochs=1, **quiet)
    trainer.fit(module, datamodule=data)
    trainer.test(module, datamodule=data, verbose=False)


@pytest.fixture
def model(vit_spec: Any) -> dict[str, Any]:
    """What both kinds of runs take."""
    method = partial(SimCLR, hidden_dim=8, output_dim=4)
    optimizer = partial(SGD, lr=0.01)
    return {"encoder": vit_spec, "method": method, "augment": DigitsViews(), "optimizer": optimizer, "seed": 0}


def test_of_a_federated_run(model: dict[str, Any], vit_spec: EncoderSpec) -> None:
    read: dict[str, set[str]] = {name: set() for name in ("run", "module", "data", "evaluation", "finetuning")}
    size = {"image_size": vit_spec.image_size, "channels": vit_spec.in_channels}
    data = watched(FederatedData(clients=2, train_images=20, eval_train_images=40, seed=0, **size), read["data"])
    evaluation = watched(EvaluationSettings(), read["evaluation"])
    finetuning = watched(FinetuneSettings(epochs=1, warmup_epochs=0, batch_size=40), read["finetuning"])
    module = FederatedSSL(
        scheme=EndToEnd(), rounds=1, batch_size=8, evaluation=evaluation, finetuning=finetuning, **model
    )
    groups = {name: watched(getattr(module.settings, name), read.setdefault(name, set())) for name in GROUPS}
    watched(module.settings, read["run"])
    run(watched(module, read["module"]), data)
    others = {"scheme", "rounds", "seed", "evaluation", "finetuning", "base_batch_size"}  # the last is in the optimizer
    assert settings(FederatedSSL) <= {*_flat(groups)} | others
    assert {"scheme", "rounds", "seed", *GROUPS} <= read["run"]
    assert {"evaluation", "finetuning"} <= read["module"]
    unread = {(name, field) for name, group in groups.items() for field in vars(group)}
    unread -= {(name, field) for name in groups for field in read[name]}
    assert unread == {("cohort", "deadline")}  # refused without devices
    assert {KEPT_AS.get(name, name) for name in settings(FederatedData, ImageData) - {"batch_size"}} <= read["data"]
    assert settings(EvaluationSettings) <= read["evaluation"]
    assert settings(FinetuneSettings) <= read["finetuning"]


def _flat(groups: dict[str, Any]) -> set[str]:
    """Names on the command line of all settings in groups."""
    names = {value: key for key, value in KEPT_AS.items()}
    fields = {(name, field) for name, group in groups.items() for field in vars(group)}
    renamed = {("local", "epochs"), ("local", "memory"), ("server", "optimizer")}
    return {names[field] if (name, field) in renamed else field for name, field in fields}


def test_of_a_centralised_run(model: dict[str, Any], vit_spec: EncoderSpec) -> None:
    seen: set[str] = set()
    size = {"image_size": vit_spec.image_size, "channels": vit_spec.in_channels}
    data = watched(ImageData(train_images=20, eval_train_images=40, batch_size=10, seed=0, **size), seen)
    run(CentralizedSSL(**model), data)
    assert {KEPT_AS.get(name, name) for name in settings(ImageData)} <= seen


def test_of_text() -> None:
    seen: set[str] = set()
    data = watched(FederatedText(context=32, clients=3, seed=0), seen)
    data.setup("fit")
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        next(iter(loader))
    assert {(KEPT_AS | TEXT).get(name, name) for name in settings(FederatedText)} <= seen


def test_of_everything_that_a_configuration_can_name() -> None:
    sources = "\n".join(path.read_text() for folder in OWN for path in (ROOT / folder).rglob("*.py"))
    used = Counter(re.findall(r"\b\w+\b(?!: )", sources)) - Counter(re.findall(r"self\.(\w+) = ", sources))
    classes = {each for bases in PLACES.values() for base in bases for each in _below(base)}
    own = [each for each in classes if each.__module__.partition(".")[0] in OWN and not issubclass(each, Trainer)]
    assert len(own) > 40
    assert not {f"{each.__name__}.{name}" for each in own for name in settings(each) if not used[name]}


def test_the_batch_size_of_pooled_images_is_no_setting_of_a_federation() -> None:
    with pytest.raises(ValueError, match=r"read in centralised training only: set --model\.batch_size"):
        FederatedData(batch_size=8)


def test_every_flag_of_the_trainer_is_known() -> None:
    """A new version of Lightning may bring flags: somebody has to say what they mean in a federation."""
    assert settings(Trainer) == READ | set(UNREAD) | REFUSED_ELSEWHERE


WRONG: dict[str, Any] = {
    "accumulate_grad_batches": 2, "gradient_clip_val": 1.0, "gradient_clip_algorithm": "norm", "limit_train_batches": 5,
    "limit_predict_batches": 2, "overfit_batches": 1, "val_check_interval": 0.5,
    "reload_dataloaders_every_n_epochs": 1, "min_epochs": 2, "min_steps": 2, "sync_batchnorm": True,
}  # fmt: skip


@pytest.fixture
def make_trainer() -> Callable[..., Trainer]:
    return partial(Trainer, accelerator="cpu", devices=1, max_epochs=2, logger=False)


@pytest.mark.parametrize("flag", WRONG)
def test_a_flag_that_nothing_reads_is_refused(flag: str, make_trainer: Callable[..., Trainer]) -> None:
    assert set(WRONG) == set(UNREAD) | REFUSED_ELSEWHERE - {"default_root_dir"}
    with pytest.raises(ValueError, match=rf"trainer\.{flag} .*no effect in a federated run: "):
        check_trainer(make_trainer(**{flag: WRONG[flag]}), 2)


def test_a_time_between_validations_is_refused(make_trainer: Callable[..., Trainer]) -> None:
    with pytest.raises(ValueError, match=r"trainer\.val_check_interval as a time has no effect"):
        check_trainer(make_trainer(val_check_interval="00:00:01:00"), 2)


def test_what_a_flag_is_by_itself_is_accepted(make_trainer: Callable[..., Trainer]) -> None:
    check_trainer(make_trainer(), 2)
    check_trainer(make_trainer(limit_train_batches=1), 2)
    check_trainer(make_trainer(fast_dev_run=True), 2)


@pytest.mark.parametrize("flag", LEAST)
def test_an_interval_out_of_range_is_refused(flag: str, make_trainer: Callable[..., Trainer]) -> None:
    for value in (LEAST[flag] - 1, -5):
        with pytest.raises(ValueError, match=rf"trainer\.{flag} must be at least {LEAST[flag]}, got {value}"):
            check_intervals(make_trainer(**{flag: value}))
