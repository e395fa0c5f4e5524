"""A plan against the run it foretells, and against the allocator."""

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from pytorch_lightning import Trainer
from torch.optim import SGD, AdamW
from torch.profiler import ProfilerActivity, profile

from fedssl import Calibration, Dirichlet, FederatedData, FederatedSSL, GlobalAlignment
from fedssl.cli import main
from fedssl.model import build_model
from fedssl.plan import paper_convention, plan_as_dict, plan_run, total
from fedssl.prediction import StepPredictor
from layerwise import EncoderSpec, EndToEnd, LayerWise, Progressive, Scheme, tensor_bytes
from ssl_methods import BYOL, DigitsViews, MoCoV3, NaturalViews, SimCLR

VIT = EncoderSpec("vit_tiny_patch16_224", 16, 1, options={"patch_size": 4, "depth": 4, "embed_dim": 32, "num_heads": 2})
VIT_TINY = EncoderSpec("vit_tiny_patch16_224", 32, 3, options={"patch_size": 4, "depth": 3})
RESNET = EncoderSpec("resnet18", 32, 3)
SMALL_HEADS = {"hidden_dim": 32, "output_dim": 16}


def module(scheme: Scheme, method: Callable[..., Any] = SimCLR, **settings: Any) -> FederatedSSL:
    settings = {"rounds": 8, "local_epochs": 2, "batch_size": 16} | settings
    optimizer = partial(AdamW, lr=1e-3)
    return FederatedSSL(VIT, partial(method, **SMALL_HEADS), DigitsViews(), optimizer, scheme, seed=0, **settings)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scheme", "settings", "auxiliary"),
    [
        (LayerWise(), {"participation": 3, "dropout": 0.3}, 0.0),
        (Progressive(2), {"method": MoCoV3, "alignment": GlobalAlignment(), "proximal": 0.1}, 0.0),
        (LayerWise(), {"method": BYOL, "calibration": Calibration()}, 0.2),
        (LayerWise(2), {"method": BYOL, "calibration": Calibration(when="stage"), "participation": 0.5}, 0.2),
        (EndToEnd(), {}, 0.0),
    ],
)
def test_traffic_operations_and_activations_are_those_of_the_run(
    scheme: Scheme, settings: dict[str, Any], auxiliary: float
) -> None:
    planned = module(scheme, **settings)
    partition = Dirichlet(1.0, min_size=3)
    data = FederatedData(5, partition, auxiliary, dataset="digits", image_size=16, train_images=150, seed=0)
    data.setup("fit")
    images = [len(client) for client in data.federation.clients]
    plan = plan_as_dict(planned, images)
    trainer = Trainer(
        max_epochs=8,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(planned, datamodule=data)
    assert planned.server is not None
    clients = planned.server.ledger.clients.values()
    for key in ("macs", "down_bytes", "up_bytes"):
        assert plan["total"][key] * 5 == pytest.approx(sum(getattr(client, key) for client in clients), rel=1e-12)
    measured = max(client.activation_bytes for client in clients)
    assert max(stage["step"]["activations"] for stage in plan["stages"]) == measured


@pytest.mark.parametrize("batch_size", [32, pytest.param(128, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("spec", "scheme"), [(VIT_TINY, LayerWise()), (VIT_TINY, EndToEnd()), (RESNET, LayerWise())])
def test_the_peak_is_that_of_the_allocator(spec: EncoderSpec, scheme: Scheme, batch_size: int) -> None:
    model = build_model(spec, MoCoV3, NaturalViews(), partial(AdamW, lr=1e-3), 0)
    blocks = len(model.encoder.blocks)
    stage = scheme.stages(blocks, blocks)[-1]
    predicted = StepPredictor(model, None, 0.0)(stage, batch_size)
    model.attach(stage)
    method = model.method
    views = tuple(torch.randn(batch_size, 3, 32, 32) for _ in range(2))
    optimizer = method.configure_optimizers()

    def step() -> None:
        method.loss_of(views).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        method.after_step()

    step()
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


def test_parts_of_the_memory_by_hand() -> None:
    model = build_model(VIT, partial(BYOL, **SMALL_HEADS), DigitsViews(), partial(SGD, lr=0.1, momentum=0.9), 0)
    second = LayerWise().stages(4, 4)[1]
    step = StepPredictor(model, None, 0.0)(second, 8)
    sizes = {
        name: sum(t.numel() * t.element_size() for t in m.state_dict().values()) for name, m in model.modules.items()
    }
    trained = [p for name in model.trained_names(second) for p in model.modules[name].parameters()]
    present = [*model.trained_names(second), *model.frozen_names(second)]
    assert step.parameters == sum(sizes[name] for name in present)
    assert step.gradients == sum(p.numel() * 4 for p in trained)
    assert step.optimizer_state == step.gradients
    assert step.copies == sizes["block.1"] + sizes["tail"] + sizes["head.projector"]


@pytest.mark.parametrize("method", [SimCLR, MoCoV3])
@pytest.mark.parametrize("scheme", [LayerWise(), LayerWise([1, 2, 1]), Progressive(), EndToEnd()])
def test_deep_stages_follow_from_shallow_ones(method: Callable[..., Any], scheme: Scheme) -> None:
    model = build_model(VIT, partial(method, **SMALL_HEADS), DigitsViews(), partial(AdamW, lr=1e-3), 0)
    predictor = StepPredictor(model, GlobalAlignment(), 0.1)
    for stage in scheme.stages(4, 12):
        inferred, run = predictor(stage, 8).as_dict(), predictor.run(stage, 8).as_dict()
        assert inferred["peak"] == pytest.approx(run["peak"], rel=0.03)
        for key in inferred.keys() - {"peak", "transient"}:
            assert inferred[key] == run[key], key


def test_the_peak_of_deep_stages_is_exact_at_the_papers_size() -> None:
    model = build_model(VIT_TINY, MoCoV3, NaturalViews(), partial(AdamW, lr=1e-3), 0)
    predictor = StepPredictor(model, None, 0.0)
    for stage in (LayerWise().stages(3, 3)[-1], EndToEnd().stages(3, 3)[0]):
        assert predictor(stage, 64) == predictor.run(stage, 64)


def test_the_model_is_left_as_it_was() -> None:
    planned = module(LayerWise())
    before = {name: tensor.clone() for name, tensor in planned.state_dict().items()}
    random = torch.get_rng_state()
    plan_run(planned, [20, 20])
    assert all(torch.equal(tensor, before[name]) for name, tensor in planned.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


def test_layer_wise_needs_less_than_progressive_and_that_no_more_than_end_to_end() -> None:
    layer_wise, progressive, whole = (
        total(plan_run(module(s), [40])) for s in (LayerWise(), Progressive(), EndToEnd())
    )
    for key in ("macs", "down_bytes", "up_bytes"):
        assert layer_wise[key] < progressive[key] < whole[key]
    assert layer_wise["peak_memory_bytes"] < progressive["peak_memory_bytes"] == whole["peak_memory_bytes"]


def test_the_papers_convention_counts_as_table_2() -> None:
    spec = EncoderSpec("vit_tiny_patch16_224", 32, 3, options={"patch_size": 4, "qkv_bias": False})
    planned = FederatedSSL(
        spec, MoCoV3, NaturalViews(), partial(AdamW, lr=1e-3), LayerWise(), rounds=180, local_epochs=3, seed=0
    )
    paper = paper_convention(planned)
    assert paper["total"]["gflops"] == pytest.approx(139, rel=0.005)
    assert paper["total"]["traffic_gb"] == pytest.approx(1.66, abs=0.005)
    assert paper["total"]["worst_traffic_gb"] == pytest.approx(3.35, abs=0.005)
    assert paper["end_to_end"]["gflops"] == pytest.approx(586, rel=0.005)
    assert paper["end_to_end"]["traffic_gb"] == pytest.approx(8.40, abs=0.005)


def test_json_is_all_that_plan_prints(capsys: pytest.CaptureFixture[str]) -> None:
    main(["plan", "-c", "lw_fedssl.yaml", "--json=true", "--images_per_client=100"])
    plan = json.loads(capsys.readouterr().out)
    assert plan.keys() == {"convention", "summary", "stages", "total", "end_to_end", "ratio"}
    assert plan["convention"].keys() == {"ours", "paper"}
    keys = {"peak_memory_bytes", "macs", "down_bytes", "up_bytes"}
    assert plan["total"].keys() == plan["end_to_end"].keys() == plan["ratio"].keys() == keys
    assert len(plan["stages"]) == 6
    assert plan["total"]["peak_memory_bytes"] == max(stage["peak_memory_bytes"] for stage in plan["stages"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-c", "centralized.yaml"], "only federated runs can be planned"),
        (["-c", "lw_fedssl.yaml", "--images_per_client=0"], "images_per_client must be at least 1"),
        (["-c", "lw_fedssl.yaml", "--data.dataset=cifar10"], "give --images_per_client"),
    ],
)
def test_what_cannot_be_planned(arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        main(["plan", *arguments])


def test_the_table_names_every_stage(capsys: pytest.CaptureFixture[str]) -> None:
    main(["plan", "-c", "lw_fedssl.yaml", "--images_per_client=100"])
    said = capsys.readouterr().out
    assert "1 of 6" in said
    assert "as the paper counts" in said
