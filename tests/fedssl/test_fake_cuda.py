"""A client's round as on a GPU, with fake tensors on a card that need not exist; no step may wait for it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from fake_card import CUDA, LOSS, Card
from torch import Tensor, nn
from torch.optim import AdamW
from torch.utils._pytree import tree_leaves

from fedssl.client.bank import ActivationBank
from fedssl.client.local_step import LocalStep
from fedssl.client.local_update import LocalUpdate
from fedssl.data.datasets import TextSet
from fedssl.protocol.messages import Result, Task
from fedssl.protocol.parts import PartitionedModel
from fedssl.server.calibration import Calibration
from layerwise import CausalTransformerSpec, EndToEnd, HeterogeneousLoRA, LayerWise, Progressive, Stage
from layerwise.memory import Action, PlannedStep, segments
from layerwise.memory.codec import compress
from layerwise.memory.layout import layout_of
from linear_eval import Features, feature_std, knn_predict, rankme
from ssl_methods import DigitsViews, LanguageModelling, MedicalViews, Method, NaturalViews, TwoViews
from ssl_methods.alignment import GlobalAlignment, MoonAlignment

SCHEMES = {"LayerWise": LayerWise(), "Progressive": Progressive(), "EndToEnd": EndToEnd()}

pytestmark = pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")


@pytest.fixture
def make_round(make_model: Callable[..., Any], noise: Any, vit_spec: Any, card: Card) -> Callable[..., Any]:
    """Makes a client's model on the card, and gives a function that trains the client on a number of samples."""

    def make(method: Any = "SimCLR", scheme: Any = LayerWise(), **local: Any) -> Any:  # noqa: B008
        optimizer = {"optimizer": local.pop("optimizer")} if "optimizer" in local else {}
        spec, samples = local.pop("spec", vit_spec), local.pop("samples", noise)
        model = make_model(method, spec=scheme.adapt(spec), **optimizer)
        stage = scheme.stages(3, 3)[-1]
        with card:
            model.to(CUDA)
        update = LocalUpdate(model, epochs=1, batch_size=4, seed=0, recall=lambda *_: {}, **local)

        def train(number: int) -> Result:
            with card:
                card.waits.clear()
                result = update(task_of(model, stage, update.step.corrected), samples(number))
            assert isinstance(result, Result), result
            assert result.steps == number // 4
            held = [*tensors(model.method), *tree_leaves(result.parts), *tensors(model.encoder)]
            assert all(tensor.device == CUDA for tensor in held)
            return result

        return train

    return make


def tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def task_of(model: PartitionedModel, stage: Stage, corrected: bool) -> Task:
    active = model.read(model.trained_names(stage))
    frozen = dict.fromkeys(model.frozen_names(stage), "given")
    parameters = model.parameters(active)
    correction: dict[str, dict[str, Tensor]] = {part: {} for part in active} if corrected else {}
    for key, parameter in parameters.items() if corrected else ():
        part, _, name = key.partition("/")
        correction[part][name] = torch.zeros(parameter.shape)
    return Task(0, 0, stage, active, frozen, model.read(frozen), correction)


PAIRS = [
    pytest.param(method, scheme, marks=[] if method == "MoCoV3" or scheme == "LayerWise" else pytest.mark.slow)
    for method in ("SimCLR", "BYOL", "BarlowTwins", "DINO", "MAE", "MoCoV3", "SimSiam", "Supervised", "VICReg")
    for scheme in SCHEMES
]


@pytest.mark.parametrize(("method", "scheme"), PAIRS)
def test_no_step_of_a_method_waits(method: str, scheme: str, make_round: Callable[..., Any], card: Card) -> None:
    make_round(method, SCHEMES[scheme])(4)
    assert card.waits == LOSS


@pytest.mark.parametrize(
    "step",
    [
        LocalStep(alignment=GlobalAlignment(), proximal=0.1),
        LocalStep(alignment=MoonAlignment()),
        LocalStep(corrected=True, clip_norm=1.0),
    ],
    ids=["alignment", "moon", "correction"],
)
def test_no_further_term_waits(step: LocalStep, make_round: Callable[..., Any], card: Card) -> None:
    train = make_round(step=step, optimizer=partial(AdamW, lr=0.01))
    for _ in range(2):  # From the second round on MOON has a memory to compare with, which it keeps on the CPU.
        train(4)
        assert card.waits[:3] == LOSS
        assert set(card.waits[3:]) <= {"_to_copy"}


def test_low_rank_adapters_do_not_wait(make_round: Callable[..., Any], card: Card) -> None:
    make_round(scheme=HeterogeneousLoRA([2]))(4)
    assert card.waits == LOSS


def test_text_does_not_wait(make_round: Callable[..., Any], card: Card) -> None:
    spec = CausalTransformerSpec(context=8, depth=3, width=16, heads=2)
    make_round(LanguageModelling, spec=spec, samples=lambda number: TextSet("a", {"a": "x" * 9 * number}, 8))(4)
    assert card.waits == LOSS


def test_a_resnet_does_not_wait(make_round: Callable[..., Any], noise: Any, resnet_spec: Any, card: Card) -> None:
    make_round(spec=resnet_spec, samples=partial(noise, size=16))(4)
    assert card.waits == LOSS


@pytest.mark.parametrize("views", [NaturalViews(noise=0.1), MedicalViews(), DigitsViews()])
@pytest.mark.parametrize("channels", [1, 3])
def test_augmentation_draws_on_the_card(views: TwoViews, channels: int, card: Card) -> None:
    with card:
        images = torch.zeros(4, channels, 8, 8, dtype=torch.uint8, device=CUDA)
        generator = torch.Generator(CUDA)
        found = [*views(images, generator), views.first(images, generator), views.plain(images)]
    assert all(view.shape == images.shape and view.device == CUDA for view in found)
    assert card.waits == []


@pytest.mark.parametrize("bits", [16, 8])
def test_a_bank_in_main_memory_is_read_without_waiting(bits: Any, make_round: Any, card: Card) -> None:
    train = make_round(bank=ActivationBank(pairs=1, bits=bits))
    train(4)
    assert card.waits == ["_to_copy"] * 2 + LOSS, "two views go into the bank"
    train(4)
    assert card.waits == LOSS


class Plans:
    """The same action for all segments of every step."""

    budget = 1

    def __init__(self, action: Action) -> None:
        self.action = action
        self.changing = False

    def begin(self, task: Task, method: Method) -> Plans:
        names = segments(method, [method.backbone, *method.heads().values()])
        self.step = PlannedStep(method, dict.fromkeys(names, self.action))
        return self

    def __call__(self, batch_size: int) -> PlannedStep:
        return self.step


@pytest.mark.parametrize("action", [Action("cheap"), Action("all", 8), Action("nothing", 4)], ids=str)
def test_memory_plans_do_not_wait(action: Action, make_round: Callable[..., Any], card: Card) -> None:
    make_round(plans=Plans(action))(4)
    assert card.waits == LOSS


@pytest.mark.parametrize(("bits", "waits"), [(8, []), (2, []), (4, ["nonzero"] * 3)])
def test_four_bits_on_average_wait_for_the_widths(bits: int, waits: list[str], card: Card) -> None:
    with card:
        block = torch.zeros(64, 64, device=CUDA)
        packed = compress(block.flatten(), layout_of(block), bits, torch.Generator(CUDA))
    assert all(tensor.device == CUDA for tensor in packed.tensors())
    assert card.waits == waits


def test_calibration_waits_for_its_loss_alone(make_model: Callable[..., Any], noise: Any, card: Card) -> None:
    model = make_model()
    with card:
        model.to(CUDA)
        card.waits.clear()
        Calibration(epochs=1, batch_size=4).run(model, LayerWise().stages(3, 3)[1], noise(4), 0, 0)
    assert card.waits == LOSS


def test_features_and_neighbours_stay_on_the_card(make_model: Callable[..., Any], noise: Any, card: Card) -> None:
    model = make_model()
    with card, torch.no_grad():
        model.to(CUDA)
        images = noise(8).gather(torch.arange(8)).to(CUDA)
        found = model.encoder(DigitsViews().plain(images)).float()
        bank = Features(found, torch.zeros(8, dtype=torch.int64, device=CUDA))
        assert knn_predict(bank, found, 3, k=2).device == CUDA
        assert feature_std(found) == rankme(found) == 1.0
