from itertools import count

import pytest
import torch
from torch import nn

from layerwise import LayerWise, StepMeter, split_encoder
from layerwise.memory import trace_step
from layerwise.memory.timeline import Use, timeline_of
from layerwise.memory.views import Ref, StateRef

FLOAT = 4  # bytes


def ticking():
    """A clock by which every operation takes one second."""
    return count().__next__


def trace_of(module, inputs):
    return trace_step(lambda: module(inputs).sum(), module, ticking())


@pytest.fixture
def chain():
    return nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 5))


def test_by_hand(chain):
    """Kept: the input, the sum that GELU gets, and its output; the second weight as well, which is state."""
    B, D, H = 4, 5, 7
    trace = trace_of(chain, torch.randn(B, D))
    names = ["addmm.default", "gelu.default", "addmm.default", "sum.default"]
    assert [str(op.func) for op in trace.ops] == [f"aten.{name}" for name in names]
    source, hidden, active, *_ = trace.values
    assert [value.nbytes for value in (source, hidden, active)] == [FLOAT * B * D, FLOAT * B * H, FLOAT * B * H]
    assert [value.producer for value in (source, hidden, active)] == [None, 0, 1]
    assert trace.slots == (
        Ref(0, source.view),
        Ref(1, hidden.view),
        Ref(2, active.view),
        StateRef("2.weight", trace.slots[3].view),
    )
    assert [slot for slot, _ in trace.unpacks] == [2, 3, 1, 0]
    assert len({node for _, node in trace.unpacks}) == 3
    assert trace.saved_bytes == FLOAT * B * (D + H + H)
    assert trace.forward_seconds == 4
    assert trace.calls == {"0#0": (0, 1), "1#0": (1, 2), "2#0": (2, 3), "model#0": (0, 3)}


def test_uses_by_hand(chain):
    timeline = timeline_of(trace_of(chain, torch.randn(4, 5)))
    assert timeline.length == 4
    assert timeline.uses == {0: (Use(3, 3, 1),), 1: (Use(2, 2, 1),), 2: (Use(0, 1, 1),)}


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_saved_bytes_are_those_of_the_meter(kind, request, images):
    encoder = request.getfixturevalue(kind)
    batch = images(encoder.spec, 3)
    trace = trace_step(lambda: encoder(batch).square().mean(), encoder)
    with StepMeter([*encoder.parameters(), *encoder.buffers()]) as meter:
        encoder(batch).square().mean().backward()
    assert trace.saved_bytes == meter.cost().activation_bytes


def test_a_frozen_prefix_keeps_nothing(vit, images):
    prefix, active = split_encoder(vit, LayerWise().stages(4, 4)[2])
    batch = images(vit.spec, 2)

    def step():
        with torch.no_grad():
            hidden = prefix(batch)
        return active(hidden).sum()

    trace = trace_step(step, vit)
    with StepMeter([*vit.parameters(), *vit.buffers()]) as meter:
        step().backward()
    assert trace.saved_bytes == meter.cost().activation_bytes
    assert any(name.startswith("blocks.2") for name in trace.calls)


def test_views_of_a_storage_are_one_value():
    rows, layers = torch.randn(6, 5), nn.ModuleList([nn.Linear(5, 2), nn.Linear(5, 3)])
    trace = trace_step(lambda: layers[0](rows[:2]).sum() + layers[1](rows[3:]).sum(), layers, ticking())
    assert list(trace.saved.values()) == [[0, 1]]
    assert trace.saved_bytes == FLOAT * 6 * 5


def test_writing_in_place_makes_a_new_value():
    layer = nn.Sequential(nn.Linear(5, 7), nn.ReLU(inplace=True), nn.Linear(7, 5))
    trace = trace_of(layer, torch.randn(4, 5))
    assert trace.ops[1].overwritten == ((1, 2),)
    assert 1 not in trace.saved
    assert trace.saved[2] == [1, 2]


def test_masks_and_random_operations_are_known():
    trace = trace_of(nn.Sequential(nn.Linear(5, 7), nn.Dropout(0.5), nn.Linear(7, 5)), torch.randn(4, 5))
    masks = [value for value in trace.saved if trace.values[value].mask]
    assert len(masks) == 1
    assert [str(op.func) for op in trace.ops if not op.replayable] == ["aten.bernoulli_.float"]


def test_graph_depends_on_shapes_but_not_on_numbers_or_times(chain):
    first, second, wider = (trace_of(chain, torch.randn(rows, 5)).graph for rows in (4, 4, 6))
    zeros = torch.zeros(4, 5)
    assert first == second == trace_step(lambda: chain(zeros).sum(), chain).graph
    assert first != wider


def test_nothing_else_changes(resnet, images):
    batch = images(resnet.spec, 3)
    resnet(batch).sum().backward()
    before = [resnet.state_dict()[name].clone() for name in resnet.state_dict()]
    gradients = [parameter.grad.clone() for parameter in resnet.parameters() if parameter.grad is not None]
    drop, random_state = nn.Dropout(0.5), torch.get_rng_state()
    trace_step(lambda: drop(resnet(batch)).sum(), resnet, ticking())
    assert all(map(torch.equal, before, resnet.state_dict().values()))
    after = [parameter.grad for parameter in resnet.parameters() if parameter.grad is not None]
    assert all(map(torch.equal, gradients, after))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in resnet.modules())


def test_a_step_that_changes_is_refused(chain):
    rows = count(4).__next__
    with pytest.raises(ValueError, match="two runs gave two graphs"):
        trace_step(lambda: chain(torch.zeros(rows(), 5)).sum(), chain)


@pytest.mark.parametrize("gives", ["rows", "nothing to learn"])
def test_what_is_no_loss_is_refused(chain, gives):
    def step():
        return chain(torch.zeros(4, 5)) if gives == "rows" else torch.zeros(())

    with pytest.raises(ValueError, match="must give a scalar loss with gradient"):
        trace_step(step, chain)


def test_hooks_are_removed_after_an_error(chain):
    with pytest.raises(RuntimeError, match="shapes"):
        trace_step(lambda: chain(torch.zeros(4, 6)).sum(), chain)
    assert not any(module._forward_hooks for module in chain.modules())
    assert trace_of(chain, torch.randn(4, 5)).saved_bytes == FLOAT * 4 * 19


def test_a_step_without_activations_is_refused():
    layer = nn.Linear(5, 5)
    with pytest.raises(ValueError, match="keeps no activations"):
        trace_step(lambda: layer.weight.sum(), layer)
