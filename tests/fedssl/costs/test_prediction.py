"""Predicted local steps against steps that are run, and against the allocator."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch.optim import SGD, AdamW
from torch.profiler import ProfilerActivity, profile

from fedssl import GlobalAlignment
from fedssl.client.local_step import LocalStep
from fedssl.costs.prediction import StepPredictor, infer_step, lagrange_weights
from fedssl.protocol.parts import PartitionedModel, build_model
from layerwise import EncoderSpec, EndToEnd, LayerWise, LiveBytes, Progressive, Scheme, Stage, StepMeter, tensor_bytes
from ssl_methods import (
    BYOL,
    DINO,
    MAE,
    DigitsViews,
    MoCoV3,
    NaturalViews,
    SimCLR,
    SimSiam,
    SSLMethod,
    Supervised,
    VICReg,
)

VIT = EncoderSpec("vit_tiny_patch16_224", 16, 1, options={"patch_size": 4, "depth": 4, "embed_dim": 32, "num_heads": 2})
VIT_TINY = EncoderSpec("vit_tiny_patch16_224", 32, 3, options={"patch_size": 4, "depth": 3})
COARSE = EncoderSpec("vit_tiny_patch16_224", 48, 3, options={"patch_size": 8, "depth": 5})
RESNET = EncoderSpec("resnet18", 32, 3)
SMALL_HEADS = {"hidden_dim": 32, "output_dim": 16}


def built(spec: EncoderSpec, method: Callable[..., Any] = MoCoV3) -> PartitionedModel:
    return build_model(spec, method, NaturalViews(), partial(AdamW, lr=1e-3), 0)


def small(method: Callable[..., Any]) -> PartitionedModel:
    heads = {Supervised: {"num_classes": 10}, MAE: {"decoder_dim": 16}}.get(method, SMALL_HEADS)
    return build_model(VIT, partial(method, **heads), DigitsViews(), partial(AdamW, lr=1e-3), 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "scheme", "batch_size"),
    [
        (VIT_TINY, LayerWise(), 32),
        (VIT_TINY, LayerWise(), 128),
        (VIT_TINY, EndToEnd(), 128),
        (COARSE, LayerWise(5), 32),
        (RESNET, LayerWise(), 32),
        (RESNET, LayerWise(), 512),
        (RESNET, EndToEnd(), 512),
    ],
)
def test_a_real_step_has_the_predicted_cost(spec: EncoderSpec, scheme: Scheme, batch_size: int) -> None:
    model = built(spec)
    blocks = len(model.encoder.blocks)
    stage = scheme.stages(blocks, blocks)[-1]
    predicted = StepPredictor(model)(stage, batch_size)
    model.attach(stage)
    method = model.method
    views = tuple(torch.randn(batch_size, 3, spec.image_size, spec.image_size) for _ in range(2))
    optimizer = method.configure_optimizers()

    def step() -> None:
        method.loss_of(views).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        method.after_step()

    with StepMeter([*method.parameters(), *method.buffers()]) as meter:
        step()
    assert (predicted.macs, predicted.activations) == (meter.cost().macs, meter.cost().activation_bytes)
    states = [t for state in optimizer.state.values() for t in state.values()]
    resident = tensor_bytes([*method.parameters(), *method.buffers(), *views, *states])
    assert predicted.optimizer_state == tensor_bytes(states)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    now = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    assert predicted.peak == pytest.approx(resident + peak, rel=0.05)


@pytest.mark.parametrize("stage", LayerWise().stages(4, 4)[:2])
def test_a_real_step_in_micro_batches_has_the_predicted_cost(stage: Stage) -> None:
    model = small(MoCoV3).in_micro_batches(4)
    predicted = StepPredictor(model).run(stage, 10)
    model.attach(stage)
    method, views = model.method, tuple(torch.randn(10, 1, 16, 16) for _ in range(2))
    optimizer = method.configure_optimizers()

    def step() -> None:
        method.loss_of(views).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        method.after_step()

    with StepMeter([*method.parameters(), *method.buffers()]) as meter:
        step()
    assert (predicted.macs, predicted.activations) == (meter.cost().macs, meter.cost().activation_bytes)
    states = [t for state in optimizer.state.values() for t in state.values()]
    with LiveBytes([*method.parameters(), *method.buffers(), *views, *states]) as live:
        step()
    assert predicted.peak == live.peak


@pytest.mark.slow
def test_steps_in_micro_batches_follow_from_steps_with_as_many() -> None:
    """With one micro-batch a step has other operations than with two."""
    predictor = StepPredictor(small(SimCLR).in_micro_batches(8))
    second, last = LayerWise().stages(4, 4)[1::2]
    for size in (2, 3, 4):
        predictor(second, size)
    for size in (7, 12):
        assert predictor(second, size) == predictor.run(second, size)
    assert predictor(last, 12) == predictor.run(last, 12)


def test_parts_of_the_memory_by_hand() -> None:
    model = build_model(VIT, partial(BYOL, **SMALL_HEADS), DigitsViews(), partial(SGD, lr=0.1, momentum=0.9), 0)
    second = LayerWise().stages(4, 4)[1]
    step = StepPredictor(model)(second, 8)
    sizes = {
        name: sum(t.numel() * t.element_size() for t in m.state_dict().values()) for name, m in model.parts.items()
    }
    trained = [p for name in model.trained_names(second) for p in model.parts[name].parameters()]
    present = [*model.trained_names(second), *model.frozen_names(second)]
    assert step.parameters == sum(sizes[name] for name in present)
    assert step.gradients == sum(p.numel() * 4 for p in trained)
    assert step.optimizer_state == step.gradients
    assert step.copies == sizes["block.1"] + sizes["tail"] + sizes["head.projector"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "scheme"),
    [
        (MoCoV3, LayerWise()),
        (MoCoV3, Progressive(warm_up_rounds=1)),
        (SimCLR, LayerWise([1, 2, 1])),
        (Supervised, EndToEnd()),
    ],
)
def test_deep_stages_follow_from_shallow_ones(method: Callable[..., Any], scheme: Scheme) -> None:
    alignment = GlobalAlignment() if issubclass(method, SSLMethod) else None
    predictor = StepPredictor(small(method), LocalStep(alignment, 0.1))
    for stage in scheme.stages(4, 15 if scheme.name == "progressive" else 12):
        inferred, run = predictor(stage, 8).as_dict(), predictor.run(stage, 8).as_dict()
        assert inferred["peak"] == pytest.approx(run["peak"], rel=0.03)
        for key in inferred.keys() - {"peak", "transient"}:
            assert inferred[key] == run[key], key


@pytest.mark.slow
def test_the_peak_of_deep_stages_is_exact_at_the_papers_size() -> None:
    predictor = StepPredictor(built(VIT_TINY))
    for stage in (LayerWise().stages(3, 3)[-1], EndToEnd().stages(3, 3)[0]):
        assert predictor(stage, 64) == predictor.run(stage, 64)


@pytest.mark.slow
@pytest.mark.parametrize("method", [SimCLR, BYOL, MoCoV3, SimSiam, VICReg, DINO, MAE, Supervised])
def test_three_batch_sizes_tell_all_others(method: Callable[..., Any]) -> None:
    alignment = GlobalAlignment() if issubclass(method, SSLMethod) else None
    predictor = StepPredictor(small(method), LocalStep(alignment, 0.1))
    stage = Stage(0, (0, 1), (1,), False, 1)
    for size in (8, 64, 16):
        predictor(stage, size)
    for size in (3, 2048):
        assert infer_step(predictor._traces[stage, 1], size) == predictor.run(stage, size) == predictor(stage, size)


@pytest.mark.slow
def test_nothing_is_inferred_from_steps_that_differ() -> None:
    predictor = StepPredictor(small(SimCLR))
    traces = {}
    for size, depth in ((8, 1), (16, 1), (32, 2)):
        stage = Stage(0, tuple(range(depth)), tuple(range(depth)), True, 1)
        predictor(stage, size)
        traces[size] = predictor._traces[stage, 1][size]
    assert infer_step(traces, 64) is None


def test_weights_of_a_parabola_by_hand() -> None:
    points, at = [1, 2, 4], 7
    assert lagrange_weights(points, at) == [5, -9, 5]
    assert sum(w * (3 * p * p - p + 2) for w, p in zip(lagrange_weights(points, at), points, strict=True)) == 142


@pytest.mark.slow
def test_a_temporary_layer_keeps_stages_from_following_from_others() -> None:
    predictor = StepPredictor(built(RESNET))
    stage = LayerWise().stages(4, 4)[2]
    assert predictor(stage, 8) == predictor.run(stage, 8)


class Curious(SimCLR):
    """Reads a value in its step."""

    def step(self, hidden: Any) -> Any:
        assert float(hidden[0].sum()) < 1e9
        return super().step(hidden)


def test_a_method_that_reads_values_is_told_so() -> None:
    with pytest.raises(ValueError, match=r"Curious reads the value of a tensor in its step .* torch\.where instead"):
        StepPredictor(small(Curious))(LayerWise().stages(4, 4)[0], 4)
