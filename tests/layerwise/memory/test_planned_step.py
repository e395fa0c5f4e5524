"""Steps with actions: what they compute, what they hold, and that nothing of them is left."""

from contextlib import nullcontext
from itertools import product

import pytest
import torch
from torch import nn

from layerwise import LiveBytes
from layerwise.memory import Action, ChangedInPlaceError, PlannedStep, segments

KINDS = ("nothing", "cheap", "all")


def differentiate(model, step, context=None):
    """Loss, gradients and buffers of one step from the same state."""
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.zero_grad()
    torch.manual_seed(5)
    with context or nullcontext():
        loss = step()
        loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.load_state_dict(state)
    return loss.detach(), gradients, buffers


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def error(gradients, reference):
    difference = sum((gradients[name] - reference[name]).float().square().sum() for name in reference)
    return float((difference / sum(reference[name].float().square().sum() for name in reference)).sqrt())


def everywhere(model, action):
    return dict.fromkeys(segments(model, [model]), action)


def chain(*layers):
    """Segments of two layers and a step."""
    model = nn.Sequential(*(nn.Sequential(*pair) for pair in zip(layers[::2], layers[1::2], strict=True)))
    inputs = torch.randn(64, 32, generator=torch.Generator().manual_seed(3))
    return model, lambda: model(inputs).square().mean()


def perceptron():
    return chain(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 8), nn.Identity())


@pytest.mark.parametrize("kind", ["vit", "resnet"])
@pytest.mark.parametrize("recompute", KINDS)
def test_recomputation_changes_no_bit(kind, recompute, request, images):
    """Loss, gradients and running statistics: a batch norm that runs twice counts its batch once."""
    encoder = request.getfixturevalue(kind)
    model = nn.Sequential(encoder.stem, *encoder.blocks, encoder.tail)
    views = images(encoder.spec, 6, 1), images(encoder.spec, 6, 2)
    step = lambda: sum(model(view).square().mean() for view in views)  # noqa: E731
    planned = PlannedStep(model, everywhere(model, Action(recompute)))
    loss, gradients, buffers = differentiate(model, step)
    again = differentiate(model, step, planned)
    assert torch.equal(again[0], loss)
    assert same(again[1], gradients)
    assert same(again[2], buffers)


def test_each_action_holds_less_than_the_one_before():
    model, step = perceptron()
    peaks = {}
    for recompute, bits in product(KINDS, (0, 8, 2)):
        planned = PlannedStep(model, everywhere(model, Action(recompute, bits)))
        differentiate(model, step, planned)
        peaks[recompute, bits] = planned.peak_bytes
    for recompute in KINDS:
        assert peaks[recompute, 0] > peaks[recompute, 8] > peaks[recompute, 2]
    assert peaks["nothing", 0] >= peaks["cheap", 0] >= peaks["all", 0] < peaks["nothing", 0]


def test_all_live_bytes_fall_with_what_is_held():
    """Counted from outside: every tensor alive."""
    model = nn.Sequential(*(nn.Sequential(nn.Linear(32, 128), nn.GELU(), nn.Linear(128, 32)) for _ in range(4)))
    inputs = torch.randn(2048, 32)

    def live(planned):
        model.zero_grad()
        with LiveBytes([*model.parameters(), inputs]) as counted, planned:
            model(inputs).square().mean().backward()
        return counted.peak

    plain, planned = (PlannedStep(model, everywhere(model, Action(kind))) for kind in ("nothing", "all"))
    assert live(plain) - live(planned) == pytest.approx(plain.peak_bytes - planned.peak_bytes, rel=0.15)
    assert live(nullcontext()) == live(plain)


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_fewer_bits_give_rougher_gradients(bits):
    model, step = perceptron()
    gradients = differentiate(model, step, PlannedStep(model, everywhere(model, Action(bits=bits))))[1]
    assert {8: 0.0, 4: 0.01, 2: 0.05}[bits] < error(gradients, differentiate(model, step)[1]) < 0.02 * 4 ** (8 / bits)


def test_rounding_differs_from_step_to_step_and_follows_the_seed():
    model, step = perceptron()
    runs = {seed: PlannedStep(model, everywhere(model, Action(bits=2)), seed) for seed in (0, 1)}
    first, second = (differentiate(model, step, runs[0])[1] for _ in range(2))
    assert not same(first, second)
    assert not same(first, differentiate(model, step, runs[1])[1])
    again = PlannedStep(model, everywhere(model, Action(bits=2)), 0)
    assert same(first, differentiate(model, step, again)[1])
    assert same(second, differentiate(model, step, again)[1])


def test_compressed_gradients_are_unbiased_where_they_are_linear():
    """The weight's gradient is linear in the layer's input."""
    model, step = chain(nn.Linear(32, 64), nn.Identity(), nn.Linear(64, 8), nn.Identity())
    planned = PlannedStep(model, {"1": Action(bits=2)})
    runs = torch.stack([differentiate(model, step, planned)[1]["1.0.weight"] for _ in range(300)])
    reference = differentiate(model, step)[1]["1.0.weight"]
    assert runs.std() > 0
    assert ((runs.mean(0) - reference).abs() <= 5.5 * runs.std(0) / 300**0.5 + 1e-7).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("action", [Action("all"), Action("cheap"), Action(bits=8)], ids=str)
def test_other_data_types(dtype, action):
    model, _ = perceptron()
    model.to(dtype)
    inputs = torch.randn(128, 32, generator=torch.Generator().manual_seed(3)).to(dtype)
    step = lambda: model(inputs).float().square().sum()  # noqa: E731
    gradients = differentiate(model, step, PlannedStep(model, everywhere(model, action)))[1]
    reference = differentiate(model, step)[1]
    assert gradients["0.0.weight"].dtype == dtype
    assert error(gradients, reference) < 0.02 if action.bits else same(gradients, reference)


@pytest.mark.parametrize("recompute", KINDS)
def test_autocast_and_dropout_are_those_of_the_forward_pass(recompute):
    model, plain = chain(nn.Linear(32, 64), nn.Dropout(0.3), nn.LayerNorm(64), nn.Linear(64, 8))

    def step():
        with torch.autocast("cpu", torch.bfloat16):
            return plain().float()

    reference = differentiate(model, step)
    assert same(differentiate(model, step, PlannedStep(model, everywhere(model, Action(recompute))))[1], reference[1])


def test_a_storage_that_is_saved_several_times_is_packed_once():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(3))

        def forward(self, inputs):
            hidden = self.layers[0](inputs)
            return self.layers[1](hidden).sum() + self.layers[2](hidden[:64]).sum() + hidden.exp().sum()

    model, inputs = Shared(), torch.randn(128, 32)
    planned = PlannedStep(model, {"": Action(bits=8)})
    with planned:
        loss = model(inputs)
    whole = 128 * 32
    assert 3 * whole < planned.peak_bytes < 3.5 * whole  # inputs, hidden, exp
    loss.backward()


def test_a_result_that_is_changed_in_place_is_refused_and_not_used():
    model, step = chain(nn.Linear(32, 64), nn.ReLU(inplace=True), nn.Linear(64, 8), nn.Identity())
    with (
        PlannedStep(model, everywhere(model, Action("cheap"))) as _,
        pytest.raises(ChangedInPlaceError, match="in place"),
    ):
        step().backward()
    reference = differentiate(model, step)
    assert same(differentiate(model, step, PlannedStep(model, everywhere(model, Action("all"))))[1], reference[1])


def test_nothing_is_left_after_an_error():
    model, step = perceptron()
    planned = PlannedStep(model, everywhere(model, Action("all", 8)))
    with pytest.raises(KeyError, match="half way"), planned:
        raise KeyError(f"half way, at a loss of {step()}")
    assert all("forward" not in vars(module) for module in model.modules())
    assert torch.autograd.grad(step(), list(model.parameters()), create_graph=True)


def test_nothing_is_held_after_a_step():
    model, step = perceptron()
    planned = PlannedStep(model, everywhere(model, Action("cheap", 8)))
    with planned:
        step().backward()
        assert planned._ledger.now == 0


def test_segments_are_blocks_and_heads(vit, resnet):
    for encoder, blocks in ((vit, 4), (resnet, 8)):
        model = nn.Sequential(encoder.stem, *encoder.blocks, nn.Linear(3, 3))
        assert len(segments(model, [model])) == blocks + 1


def test_unknown_widths_are_refused():
    with pytest.raises(ValueError, match=r"bits of an action must be one of \(0, 8, 4, 2\), got 3"):
        Action(bits=3)


def test_training_with_four_bits_learns():
    model, _ = perceptron()
    inputs = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    planned = PlannedStep(model, everywhere(model, Action(bits=4)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        with planned:
            loss = (model(inputs) - inputs[:, :8].square()).square().mean()
            loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
