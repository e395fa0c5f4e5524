"""Local training from stored outputs of the frozen prefix."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch.optim import SGD

from fedssl import ActivationBank, Calibration, FederatedData, FederatedSSL
from fedssl.client.client_banks import ClientBanks
from fedssl.costs.prediction import StepPredictor
from fedssl.federation.federation import Federation
from fedssl.protocol.messages import Failure, Task
from layerwise import CausalTransformerSpec, EncoderSpec, EndToEnd, LayerWise, LoRA
from layerwise.memory import InfeasibleBudgetError
from ssl_methods import MAE, DigitsViews, LanguageModelling, SimCLR, TwoViews

TEXT = CausalTransformerSpec(context=8, depth=3, width=16, heads=2)
PLAIN = TwoViews()
"""Every view is the image itself, so that a stored view is what the prefix would give."""


class FourViews(SimCLR):
    """A method that a bank has too few views for."""

    num_views = 4


@pytest.mark.parametrize("method", ["SimCLR", "BYOL", "MoCoV3", "Supervised"])
@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_a_step_from_the_bank_is_the_step_on_the_prefixs_outputs(
    method: str, kind: str, make_world: Callable[..., Any], vit_spec: EncoderSpec, resnet_spec: EncoderSpec
) -> None:
    spec = {"vit": vit_spec, "resnet": resnet_spec}[kind]
    world = make_world(rounds=12, bank=ActivationBank(pairs=2), method=method, spec=spec, augment=PLAIN)
    task, images = world.tasks(1)[1], world.clients[1]
    world.local._receive(task)
    method, numbers = world.local.model.method, torch.tensor([3, 0, 5, 8])
    expected = method.loss_of(method.inputs(images.gather(numbers), images.labels[numbers]))
    prefix = method.prefix
    with world.local.banks(task, method, images, 4, world.local.book, "stage 1") as source:
        inputs = method.inputs(source.images.gather(numbers), source.images.labels[numbers])
        found = method.loss_of(inputs)
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=1e-3)
    assert method.prefix is prefix
    assert method.augment is PLAIN


def test_a_world_without_frozen_layers_is_as_without_a_bank(make_world: Callable[..., Any]) -> None:
    worlds = [make_world(EndToEnd(), bank=bank) for bank in (ActivationBank(), None)]
    reports = [world.run(2) for world in worlds]
    assert reports[0] == reports[1]
    weights = [world.weights() for world in worlds]
    assert all(torch.equal(tensor, weights[1][key]) for key, tensor in weights[0].items())


def test_the_prefix_runs_only_to_fill(make_world: Callable[..., Any]) -> None:
    bank = ActivationBank(pairs=3)
    world = make_world(LayerWise([2, 1]), rounds=4, epochs=2, sizes=(8,), bank=bank)
    world.run(2)
    calls: list[int] = []
    world.local.model.encoder.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    first, second = world.run(2)
    batches, views, epochs = 2, 2, 2
    assert len(calls) == bank.pairs * batches * views
    stage, model = world.server.stages[1], world.local.model
    predicted = StepPredictor(model, bank=bank)(stage, 4)
    assert second.macs == epochs * batches * predicted.macs
    assert first.macs == second.macs + bank.pairs * batches * predicted.filling_macs
    plain = StepPredictor(model)(stage, 4)
    assert (plain.macs, plain.filling_macs) == (predicted.macs + predicted.filling_macs, 0)


def test_adapters_train_from_the_bank_of_the_stem(make_world: Callable[..., Any], vit_spec: EncoderSpec) -> None:
    """All blocks are frozen, but gradients pass them: only the stem's outputs are stored."""
    scheme, bank = LoRA([1, 2]), ActivationBank(2)
    world = make_world(scheme, method="Supervised", spec=scheme.adapt(vit_spec), rounds=2, sizes=(8,), bank=bank)
    first, second = world.run(2)
    predicted = StepPredictor(world.local.model, bank=bank)(world.server.stage, 4)
    assert predicted.filling_macs > 0
    assert second.macs == 2 * predicted.macs
    assert first.macs == second.macs + 2 * 2 * predicted.filling_macs


@pytest.mark.parametrize(
    ("refresh", "calibration", "expected"),
    [
        (None, None, [False, False, False, True, False, False]),
        (2, None, [False, False, False, True, True, False]),
        (None, Calibration(), [False, False, False, True, True, True]),
    ],
)
def test_when_a_bank_is_filled(
    refresh: int | None,
    calibration: Calibration | None,
    expected: list[bool],
    make_world: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second stage has rounds 3 to 5. Rounds 2 and 3, and 4 and 5, are a period of two."""
    fill, filled = ClientBanks._fill, []

    def note(self: ClientBanks, task: Task, *others: Any) -> Any:
        filled.append(task.round)
        return fill(self, task, *others)

    monkeypatch.setattr(ClientBanks, "_fill", note)
    bank = ActivationBank(1, refresh)
    make_world(LayerWise([2, 1]), rounds=6, sizes=(4,), bank=bank, calibration=calibration).run(6)
    assert [round_ in filled for round_ in range(6)] == expected


def test_clients_and_periods_have_views_of_their_own(make_world: Callable[..., Any]) -> None:
    world = make_world(LayerWise([2, 1]), rounds=6, sizes=(4, 4), bank=ActivationBank(2, refresh=2))
    world.clients[1] = world.clients[0]
    world.run(4)
    banks = world.local.banks._banks
    first, second = (banks[client].views[0].read(torch.arange(8)) for client in (0, 1))
    world.run(1)
    later = banks[0].views[0].read(torch.arange(8))
    assert not torch.allclose(first, second)
    assert not torch.allclose(first, later)
    assert not torch.allclose(first[:4], first[4:])


def test_a_bank_above_its_budget_is_refused(make_world: Callable[..., Any]) -> None:
    """Two views of 4 tokens of 16 halves, two pairs of each of 8 images: 4 KiB."""
    world = make_world(LayerWise([2, 1]), rounds=2, sizes=(8,), bank=ActivationBank(2, budget="4000B"))
    task = world.tasks(1)[0]
    failure = world.local(task, world.clients[0])
    assert isinstance(failure, Failure)
    assert "the bank of 8 images needs 4 KiB (4096 bytes) at stage 2" in failure.reason
    assert world.local.model.method.augment is not None


@pytest.fixture
def make_module(vit_spec: EncoderSpec, methods: dict[str, Any]) -> Callable[..., FederatedSSL]:
    def make(**settings: Any) -> FederatedSSL:
        optimizer = partial(SGD, lr=0.01)
        return FederatedSSL(vit_spec, methods["SimCLR"], DigitsViews(), optimizer, LayerWise(), 3, seed=0, **settings)

    return make


def test_a_run_whose_banks_are_above_their_budget_is_refused(make_module: Callable[..., FederatedSSL]) -> None:
    data = FederatedData(3, dataset="digits", image_size=8, train_images=30, seed=0)
    data.setup("fit")
    with pytest.raises(InfeasibleBudgetError, match=r"the bank of 10 images needs .* raise it, or use fewer pairs"):
        make_module(bank=ActivationBank(budget="1kB")).prepare(data)
    make_module(bank=ActivationBank(budget="1MB")).prepare(data)


def test_bad_settings_are_refused(make_module: Callable[..., FederatedSSL], vit_spec: EncoderSpec) -> None:
    with pytest.raises(ValueError, match="leave out the bank, or the budget"):
        make_module(bank=ActivationBank(), memory_budget="10MiB")
    with pytest.raises(ValueError, match=r"bank\.pairs must be at least 1, got 0"):
        ActivationBank(pairs=0)
    with pytest.raises(ValueError, match=r"bank\.refresh must be at least 1, got 0"):
        ActivationBank(refresh=0)
    with pytest.raises(ValueError, match=r"bank\.bits must be 16 or 8, got 4"):
        ActivationBank(bits=4)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="many"):
        ActivationBank(budget="many")
    with pytest.raises(ValueError, match="a bank stores views of images: LanguageModelling has none"):
        FederatedSSL(TEXT, LanguageModelling, None, SGD, LayerWise(), 3, bank=ActivationBank(), seed=0)
    with pytest.raises(ValueError, match="a bank stores features of whole views: MAE has none"):
        FederatedSSL(vit_spec, MAE, DigitsViews(), SGD, LayerWise(), 3, bank=ActivationBank(), seed=0)
    with pytest.raises(ValueError, match="a bank stores two kinds of views: FourViews has 4 views"):
        FederatedSSL(vit_spec, FourViews, DigitsViews(), SGD, LayerWise(), 3, bank=ActivationBank(), seed=0)


def test_the_bank_in_memory_is_predicted(make_module: Callable[..., FederatedSSL]) -> None:
    """Four tokens of 16 halves, 2 views, 4 pairs, 100 images; a bank in files is not in memory."""
    in_memory, in_files = (
        Federation(make_module(bank=bank).settings, [4]).predictor
        for bank in (ActivationBank(), ActivationBank(folder="banks"))
    )
    stages = LayerWise().stages(3, 3)
    in_memory(stages[1], 4)
    assert [in_memory.bank_bytes(stage, 100) for stage in stages] == [0, *[4 * 16 * 2 * 2 * 4 * 100] * 2]
    assert [in_files.bank_bytes(stage, 100) for stage in stages] == [0, 0, 0]
