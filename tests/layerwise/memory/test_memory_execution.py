import copy
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize

from layerwise import EncoderSpec, LayerWise, LiveBytes, build_encoder, split_encoder
from layerwise.memory import Action, MemoryPlan, PlannedStep, plan_memory, trace_step

ACTIONS = [("recompute",), ("compress",), ("recompute", "compress")]


class Contrast(nn.Module):
    """Two views, an online branch and a momentum target, as in MoCo v3."""

    def __init__(self, encoder, width):
        super().__init__()
        self.online = nn.Sequential(encoder, nn.Linear(width, 16), nn.BatchNorm1d(16))
        self.target = copy.deepcopy(self.online)

    def forward(self, first, second):
        with torch.no_grad():
            keys = self.target(second), self.target(first)
        queries = self.online(first), self.online(second)
        labels = torch.arange(len(first))
        return sum(
            cross_entropy(normalize(query) @ normalize(key).T / 0.2, labels)
            for query, key in zip(queries, keys, strict=True)
        )


def make(kind, request, images, batch=6):
    encoder = request.getfixturevalue(kind)
    model = Contrast(encoder, encoder.feature_dim)
    views = images(encoder.spec, batch, 1), images(encoder.spec, batch, 2)
    return model, lambda: model(*views)


def differentiate(model, step, planned=None):
    """Loss, gradients and buffers of a step from the state in which the model is, which stays."""
    state = copy.deepcopy(model.state_dict())
    model.zero_grad()
    if planned is None:
        loss = step()
        loss.backward()
    else:
        with planned:
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


def chain(*modules):
    model = nn.Sequential(*modules)
    inputs = torch.randn(64, 32, generator=torch.Generator().manual_seed(3))
    return model, lambda: model(inputs).square().mean()


def plan_all(trace, action):
    """A plan with one action for all that an operation made."""
    large = [v for v in trace.saved if trace.values[v].producer is not None and trace.values[v].nbytes >= 4096]
    return MemoryPlan(trace.graph, trace.saved_bytes, 0, 0.0, dict.fromkeys(large, action))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vit", "token", "resnet"])
@pytest.mark.parametrize("actions", ACTIONS, ids="+".join)
def test_peak_keeps_to_the_budget_and_to_the_prediction(kind, actions, request, images):
    if kind == "token":
        encoder = build_encoder(request.getfixturevalue("token_spec"), 0)
        model, views = Contrast(encoder, 32), [images(encoder.spec, 6, seed) for seed in (1, 2)]
        step = lambda: model(*views)  # noqa: E731
    else:
        model, step = make(kind, request, images)
    trace = trace_step(step, model)
    loss, gradients, buffers = differentiate(model, step)
    for percent in (75, 50, 40) if kind == "resnet" else (75, 50, 35):
        plan = plan_memory(trace, trace.saved_bytes * percent // 100, actions)
        planned = PlannedStep(MemoryPlan.from_json(plan.to_json()), trace, model)
        planned_loss, planned_gradients, planned_buffers = differentiate(model, step, planned)
        assert planned.peak_bytes <= plan.predicted_peak <= plan.budget_bytes
        assert planned.peak_bytes >= 0.95 * plan.predicted_peak
        assert torch.equal(planned_loss, loss)
        assert same(planned_buffers, buffers)
        assert planned_gradients.keys() == gradients.keys()
        if actions == ("recompute",):
            assert same(planned_gradients, gradients)
        else:
            assert error(planned_gradients, gradients) < 0.6


def test_memory_of_the_process_falls_as_the_plan_says():
    """All live bytes, counted from outside, fall by what the saved activations fall."""
    model, _ = chain(*(layer for _ in range(4) for layer in (nn.Linear(32, 128), nn.GELU(), nn.Linear(128, 32))))
    inputs = torch.randn(2048, 32)
    trace = trace_step(lambda: model(inputs).square().mean(), model)
    plan = plan_memory(trace, trace.saved_bytes // 3, ("recompute",))
    planned = PlannedStep(plan, trace, model)

    def live(context):
        model.zero_grad()
        with LiveBytes([*model.parameters(), inputs]) as counted, context:
            model(inputs).square().mean().backward()
        return counted.peak

    assert live(nullcontext()) - live(planned) == pytest.approx(trace.saved_bytes - plan.predicted_peak, rel=0.15)


def test_a_layer_wise_stage_with_a_frozen_prefix(vit, images):
    """One trained block leaves room for a plan as well: parts of it are recomputed and compressed."""
    prefix, active = split_encoder(vit, LayerWise().stages(4, 4)[2])
    batch = images(vit.spec, 8)

    def step():
        with torch.no_grad():
            hidden = prefix(batch)
        return active(hidden).square().mean()

    trace = trace_step(step, vit)
    plan = plan_memory(trace, trace.saved_bytes * 6 // 10, ("recompute",))
    planned = PlannedStep(plan, trace, vit)
    reference = differentiate(vit, step)
    assert same(differentiate(vit, step, planned)[1], reference[1])
    assert planned.peak_bytes <= plan.budget_bytes


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_fewer_bits_less_memory_and_rougher_gradients(bits):
    model, step = chain(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 8))
    trace = trace_step(step, model)
    planned = PlannedStep(plan_all(trace, Action("compress", bits)), trace, model)
    gradients = differentiate(model, step, planned)[1]
    assert {8: 0.0, 4: 0.01, 2: 0.05}[bits] < error(gradients, differentiate(model, step)[1]) < 0.02 * 4 ** (8 / bits)


def test_rounding_differs_from_step_to_step_and_follows_the_seed():
    model, step = chain(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 8))
    trace = trace_step(step, model)
    plan = plan_all(trace, Action("compress", 2))
    runs = {seed: PlannedStep(plan, trace, model, seed) for seed in (0, 1)}
    first, second = (differentiate(model, step, runs[0])[1] for _ in range(2))
    assert not same(first, second)
    assert not same(first, differentiate(model, step, runs[1])[1])
    again = PlannedStep(plan, trace, model, seed=0)
    assert same(first, differentiate(model, step, again)[1])
    assert same(second, differentiate(model, step, again)[1])


def test_compressed_gradients_are_unbiased_where_they_are_linear():
    """The weight's gradient is linear in the layer's input."""
    model, step = chain(nn.Linear(32, 64), nn.Identity(), nn.Linear(64, 8))
    trace = trace_step(step, model)
    planned = PlannedStep(plan_all(trace, Action("compress", 2)), trace, model)
    runs = torch.stack([differentiate(model, step, planned)[1]["2.weight"] for _ in range(300)])
    reference = differentiate(model, step)[1]["2.weight"]
    assert ((runs.mean(0) - reference).abs() <= 5.5 * runs.std(0) / 300**0.5 + 1e-7).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("action", [Action("recompute"), Action("compress", 8)], ids=str)
def test_other_data_types(dtype, action):
    model, _ = chain(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 8))
    model.to(dtype)
    inputs = torch.randn(128, 32, generator=torch.Generator().manual_seed(3)).to(dtype)
    step = lambda: model(inputs).float().square().sum()  # noqa: E731
    trace = trace_step(step, model)
    planned = PlannedStep(plan_all(trace, action), trace, model)
    gradients, reference = differentiate(model, step, planned)[1], differentiate(model, step)[1]
    assert gradients["0.weight"].dtype == dtype
    assert error(gradients, reference) == 0 if action.kind == "recompute" else error(gradients, reference) < 0.02
    assert planned.peak_bytes < trace.saved_bytes


def test_autocast_around_the_whole_step():
    model, plain = chain(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 64), nn.LayerNorm(64), nn.Linear(64, 8))

    def step():
        with torch.autocast("cpu", torch.bfloat16):
            return plain().float()

    trace = trace_step(step, model)
    plan = plan_memory(trace, trace.saved_bytes * 3 // 4, ("recompute",))
    reference = differentiate(model, step)
    with torch.autocast("cpu", torch.bfloat16):
        planned = differentiate(model, step, PlannedStep(plan, trace, model))
    assert plan.actions
    assert same(planned[1], reference[1])


def test_dropout_masks_are_packed_without_loss():
    model, step = chain(nn.Linear(32, 64), nn.Dropout(0.3), nn.Linear(64, 8))
    trace = trace_step(step, model)
    (mask,) = (value for value in trace.saved if trace.values[value].mask)
    plan = MemoryPlan(trace.graph, trace.saved_bytes, 0, 0.0, {mask: Action("compress", 1)})
    planned = PlannedStep(plan, trace, model)
    torch.manual_seed(1)
    reference = differentiate(model, step)
    torch.manual_seed(1)
    assert same(differentiate(model, step, planned)[1], reference[1])
    assert planned.peak_bytes < trace.saved_bytes - 64 * 64 * 4 * 30 // 32 + 64 * 64 * 4


@pytest.mark.parametrize("action", [Action("compress", 8), Action("recompute")], ids=str)
def test_a_tensor_saved_twice_and_views_of_it_are_packed_once(action):
    layers = nn.ModuleDict({name: nn.Linear(32, 32) for name in "abc"})
    inputs = torch.randn(64, 32)

    def step():
        hidden = layers["a"](inputs)
        left, right = hidden[:32], hidden[32:]
        return layers["b"](hidden).sum() + layers["c"](left).square().sum() + (left * right).sum() + hidden.exp().sum()

    trace = trace_step(step, layers)
    hidden = next(value for value, slots in trace.saved.items() if len(slots) == 4)
    plan = MemoryPlan(trace.graph, trace.saved_bytes, 0, 0.0, {hidden: action})
    planned = PlannedStep(plan, trace, layers)
    with planned:
        loss = step()
    content = trace.values[hidden]
    packed = content.layout.packed_bytes(8) if action.bits else 0
    assert planned.peak_bytes == pytest.approx(trace.saved_bytes - content.nbytes + packed, abs=4 * 32 + 8)
    loss.backward()
    gradient = layers["a"].weight.grad.clone()
    layers.zero_grad()
    step().backward()
    assert torch.allclose(gradient, layers["a"].weight.grad, rtol=0.05, atol=0.5 if action.bits else 0)


def test_changing_a_kept_tensor_in_place_is_an_error():
    layer = nn.Linear(32, 32)
    change = []

    def step():
        hidden = layer(torch.ones(64, 32)).relu()
        loss = hidden.square().sum()
        if change:
            hidden.detach().add_(1)
        return loss

    trace = trace_step(step, layer)
    planned = PlannedStep(plan_memory(trace, trace.saved_bytes), trace, layer)
    differentiate(layer, step, planned)
    change.append(True)
    with pytest.raises(RuntimeError, match="was changed in place after the forward pass"), planned:
        step().backward()


@pytest.mark.parametrize("action", [None, Action("recompute"), Action("compress", 8)], ids=str)
def test_differentiating_twice_is_refused(action):
    model, step = chain(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 8))
    trace = trace_step(step, model)
    plan = plan_all(trace, action) if action else plan_memory(trace, trace.saved_bytes)
    planned = PlannedStep(plan, trace, model)
    with planned, pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        torch.autograd.grad(step(), model.parameters(), create_graph=True)
    if action is not None:
        with planned:
            loss = step()
            loss.backward(retain_graph=True)
            with pytest.raises(RuntimeError, match="can be differentiated only once"):
                loss.backward()


def test_hooks_are_removed_after_an_error_and_nothing_is_left():
    model, step = chain(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 8))
    trace = trace_step(step, model)
    planned = PlannedStep(plan_memory(trace, trace.saved_bytes * 3 // 4), trace, model)
    inputs = torch.randn(64, 32, generator=torch.Generator().manual_seed(3))
    with pytest.raises(KeyError, match="half way"), planned:
        {}[model[0](inputs).shape and "half way"]
    reference = differentiate(model, step)
    assert same(differentiate(model, step, planned)[1], reference[1])
    assert torch.autograd.grad(model(torch.zeros(3, 32)).sum(), model.parameters(), create_graph=True)


def test_nothing_is_held_after_a_step():
    model, step = chain(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 8))
    trace = trace_step(step, model)
    for actions in ACTIONS:
        planned = PlannedStep(plan_memory(trace, trace.saved_bytes * 3 // 4, actions), trace, model)
        differentiate(model, step, planned)
        assert planned.peak_bytes > 0
        assert planned._ledger.now == 0


def test_a_plan_for_another_graph_is_refused():
    model, step = chain(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 8))
    other, other_step = chain(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 8))
    trace, other_trace = trace_step(step, model), trace_step(other_step, other)
    plan = plan_memory(trace, trace.saved_bytes * 3 // 4)
    with pytest.raises(ValueError, match=f"the plan is for graph {trace.graph}, this step's graph is"):
        PlannedStep(plan, other_trace, other)
    with pytest.raises(ValueError, match="names values that the step does not save: "):
        PlannedStep(MemoryPlan(trace.graph, 1, 1, 0.0, {999: Action("recompute")}), trace, model)
    with pytest.raises(ValueError, match="which cannot be rebuilt"):
        PlannedStep(MemoryPlan(trace.graph, 1, 1, 0.0, {0: Action("recompute")}), trace, model)


@pytest.mark.parametrize(
    ("rows", "layers", "message"),
    [
        (63, 3, "saved tensor 0 is an activation as"),
        (64, 2, "it saved 2 tensors, not 4"),
        (64, 4, r"saves more than \d tensors|saved tensor \d is"),
    ],
    ids=["smaller batch", "less", "more"],
)
def test_a_step_that_was_not_traced_is_refused(rows, layers, message):
    model = nn.Sequential(nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 32), nn.Linear(32, 32))
    trace = trace_step(lambda: model[:3](torch.ones(64, 32)).sum(), model)
    planned = PlannedStep(plan_memory(trace, trace.saved_bytes), trace, model)
    with pytest.raises(ValueError, match=message), planned:
        model[:layers](torch.ones(rows, 32)).sum().backward()


def test_training_with_four_bits_learns():
    model, _ = chain(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 8))
    inputs = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    goal = inputs[:, :8].square()
    step = lambda: (model(inputs) - goal).square().mean()  # noqa: E731
    trace = trace_step(step, model)
    planned = PlannedStep(plan_all(trace, Action("compress", 4)), trace, model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        with planned:
            loss = step()
            loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.slow
def test_vit_tiny(images):
    encoder = build_encoder(EncoderSpec("vit_tiny_patch16_224", 32, 3, options={"patch_size": 4}), 0)
    model = Contrast(encoder, encoder.feature_dim)
    views = images(encoder.spec, 4, 1), images(encoder.spec, 4, 2)
    trace = trace_step(lambda: model(*views), model)
    reference = differentiate(model, lambda: model(*views))
    for percent in (50, 15):
        for actions in ACTIONS:
            plan = plan_memory(trace, trace.saved_bytes * percent // 100, actions)
            planned = PlannedStep(plan, trace, model)
            gradients = differentiate(model, lambda: model(*views), planned)[1]
            assert 0.95 * plan.predicted_peak <= planned.peak_bytes <= plan.predicted_peak <= plan.budget_bytes
            assert same(gradients, reference[1]) or "compress" in actions
