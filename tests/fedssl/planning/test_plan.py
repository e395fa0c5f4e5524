"""A plan against the run it foretells."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import AdamW

from fedssl import FederatedSSL
from fedssl.__main__ import main
from fedssl.planning.plan import Planner, paper_convention, plan_as_dict, total
from layerwise import EncoderSpec, EndToEnd, LayerWise, Progressive, Scheme
from ssl_methods import DigitsViews, MoCoV3, NaturalViews, SimCLR
from ssl_methods.alignment import GlobalAlignment

VIT = EncoderSpec("vit_tiny_patch16_224", 16, 1, options={"patch_size": 4, "depth": 4, "embed_dim": 32, "num_heads": 2})
RESNET = EncoderSpec("resnet18", 16, 1, options={"channels": (8, 8, 16, 16)})
SMALL_HEADS = {"hidden_dim": 32, "output_dim": 16}


def module(
    scheme: Scheme, method: Callable[..., Any] = SimCLR, spec: EncoderSpec = VIT, **settings: Any
) -> FederatedSSL:
    settings = {"rounds": 8, "local_epochs": 2, "batch_size": 16} | settings
    optimizer = partial(AdamW, lr=1e-3)
    return FederatedSSL(spec, partial(method, **SMALL_HEADS), DigitsViews(), optimizer, scheme, seed=0, **settings)


@pytest.mark.slow
def test_the_model_is_left_as_it_was() -> None:
    planned = module(LayerWise())
    before = {name: tensor.clone() for name, tensor in planned.state_dict().items()}
    random = torch.get_rng_state()
    plan_as_dict(Planner(planned.settings, [20, 20]))
    assert all(torch.equal(tensor, before[name]) for name, tensor in planned.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.slow
def test_layer_wise_needs_less_than_progressive_and_that_no_more_than_end_to_end() -> None:
    layer_wise, progressive, whole = (
        total(Planner(module(s).settings, [40]).plan(s)) for s in (LayerWise(), Progressive(), EndToEnd())
    )
    for key in ("macs", "down_bytes", "up_bytes"):
        assert layer_wise[key] < progressive[key] < whole[key]
    assert layer_wise["peak_memory_bytes"] < progressive["peak_memory_bytes"] == whole["peak_memory_bytes"]


@pytest.mark.parametrize(("alignment", "gflops"), [(None, 139), (GlobalAlignment(), 318)])
def test_the_papers_convention_counts_as_its_tables(alignment: GlobalAlignment | None, gflops: int) -> None:
    spec = EncoderSpec("vit_tiny_patch16_224", 32, 3, options={"patch_size": 4, "qkv_bias": False})
    optimizer, settings = partial(AdamW, lr=1e-3), {"rounds": 180, "local_epochs": 3, "alignment": alignment}
    planned = FederatedSSL(spec, MoCoV3, NaturalViews(), optimizer, LayerWise(), seed=0, **settings)
    paper = paper_convention(Planner(planned.settings, [2]))
    assert round(paper["total"]["gflops"]) == gflops
    assert paper["total"]["traffic_gb"] == pytest.approx(1.66, abs=0.005)
    assert paper["total"]["worst_traffic_gb"] == pytest.approx(3.35, abs=0.005)
    assert paper["end_to_end"]["traffic_gb"] == pytest.approx(8.40, abs=0.005)


@pytest.mark.parametrize(("budget", "communication", "computation"), [(None, 0.542, 0.389), (6, 0.292, 0.222)])
def test_the_papers_convention_has_the_shares_of_fll(
    budget: int | None, communication: float, computation: float
) -> None:
    spec = EncoderSpec("vit_tiny_patch16_224", 32, 3, options={"patch_size": 4})
    scheme = LayerWise(layer_budget=budget)
    planned = FederatedSSL(spec, SimCLR, NaturalViews(), partial(AdamW, lr=1e-3), scheme, rounds=12, seed=0)
    layers = paper_convention(Planner(planned.settings, [2]))["layers"]
    assert layers[0] == {"communication": pytest.approx(1 / 12), "computation": pytest.approx(1 / 12)}
    assert max(layer["communication"] for layer in layers) == pytest.approx(communication, abs=0.0005)
    assert max(layer["computation"] for layer in layers) == pytest.approx(computation, abs=0.0005)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "blocks"),
    [
        (RESNET, 4),
        (EncoderSpec("vit_tiny_patch16_224", 24, 3, options={"patch_size": 8, "depth": 5, "embed_dim": 48}), 5),
    ],
)
def test_other_encoders_follow(spec: EncoderSpec, blocks: int) -> None:
    planned = module(LayerWise(), spec=spec, rounds=2 * blocks)
    plan = plan_as_dict(Planner(planned.settings, [40, 21]))
    assert [len(stage["present"]) for stage in plan["stages"]] == list(range(1, blocks + 1))
    assert all(ratio > 1 for ratio in plan["ratio"].values())


@pytest.mark.slow
def test_clients_that_cannot_train_send_nothing() -> None:
    both, one = (total(Planner(module(EndToEnd()).settings, images).plan(EndToEnd())) for images in ([20, 20], [20, 1]))
    assert one["down_bytes"] == both["down_bytes"]
    assert (one["up_bytes"] * 2, one["macs"] * 2) == (both["up_bytes"], both["macs"])


SHALLOW = [
    "--model.encoder.options={patch_size: 4, depth: 2, embed_dim: 16, num_heads: 2}",
    "--model.rounds=4",
]
FLEET = """devices:
  - {name: phone, memory: 2GiB, macs_per_second: 1e10, download: 20 Mbit/s, share: 0.5}
  - {name: camera, memory: 1MiB, share: 0.5}
"""


@pytest.mark.slow
def test_json_is_all_that_plan_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "fleet.yaml").write_text(FLEET)
    more = ["--device-profile", str(tmp_path / "fleet.yaml"), "--budget=64MiB", "--plot", str(tmp_path / "plan.png")]
    main(["plan", "-c", "lw_fedssl.yaml", "--json", "--images_per_client=100", *SHALLOW, *more])
    plan = json.loads(capsys.readouterr().out)
    assert plan.keys() == {
        "convention", "summary", "stages", "total", "end_to_end", "ratio", "budget", "fleet"
    }  # fmt: skip
    assert plan["budget"].keys() == {"bytes", "tried", "fits", "cheapest"}
    assert plan["budget"]["bytes"] == 64 * 2**20
    assert [device["name"] for device in plan["fleet"]["devices"]] == ["phone", "camera"]
    assert plan["fleet"].keys() == {"devices", "stages", "end_to_end", "total"}
    assert (tmp_path / "plan.png").stat().st_size > 1000


@pytest.mark.parametrize("json_flag", [["--json=true"], ["--json", "true"]])
def test_json_has_a_value_if_one_is_given(
    json_flag: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedssl.planning.command.plan_as_dict", lambda planner: {"images": planner.images})
    main(["plan", "-c", "lw_fedssl.yaml", *SHALLOW, "--images_per_client=100", "--data.clients=2", *json_flag])
    assert json.loads(capsys.readouterr().out) == {"images": [100, 100]}


def test_json_without_options(capsys: pytest.CaptureFixture[str]) -> None:
    main(["plan", "-c", "lw_fedssl.yaml", *SHALLOW, "--images_per_client=100", "--json"])
    plan = json.loads(capsys.readouterr().out)
    assert plan.keys() == {"convention", "summary", "stages", "total", "end_to_end", "ratio"}
    assert plan["convention"].keys() == {"ours", "paper"}
    keys = {"peak_memory_bytes", "macs", "down_bytes", "up_bytes"}
    assert plan["total"].keys() == plan["end_to_end"].keys() == plan["ratio"].keys() == keys
    assert len(plan["stages"]) == 2
    assert plan["total"]["peak_memory_bytes"] == max(stage["peak_memory_bytes"] for stage in plan["stages"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-c", "centralized.yaml"], "only federated runs can be planned"),
        (["-c", "lw_fedssl.yaml", "--images_per_client=0"], "images_per_client must be at least 2"),
        (["-c", "lw_fedssl.yaml", "--data.dataset=cifar10"], "give --images_per_client"),
        (["-c", "lw_fedssl.yaml", "--budget=512"], "'512' is not a size"),
        (["-c", "lw_fedssl.yaml", "--device-profile=absent.yaml"], r"absent\.yaml: no such file"),
        (["-c", "lw_fedssl.yaml", "--plot", "plan.gif"], r"must end in \.png or \.svg"),
        (["-c", "lw_fedssl.yaml", "--model.encoder.name=vit_tny_patch16_224"], "vit_tiny_patch16_224"),
    ],
)
def test_what_cannot_be_planned(arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        main(["plan", *arguments])


@pytest.mark.slow
def test_the_table_names_every_stage(capsys: pytest.CaptureFixture[str]) -> None:
    main(["plan", "-c", "lw_fedssl.yaml", "--images_per_client=100", *SHALLOW, "--budget=1KiB"])
    said = capsys.readouterr().out
    assert " 1/2 " in said
    assert "nothing fits 1 KiB" in said
    assert "as the paper counts" in said
