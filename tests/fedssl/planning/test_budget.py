import json
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from rich.console import Console
from torch.optim import SGD

from fedssl import FederatedSSL, GlobalAlignment
from fedssl.planning.budget import Choice, batch_sizes, candidates, choices, preference, rank
from fedssl.planning.command import budget_tables, print_blocks
from fedssl.planning.plan import Planner
from layerwise import EncoderSpec, LastLayers, LayerWise, LoRA, Progressive, Scheme
from ssl_methods import DigitsViews, SimCLR

VIT = EncoderSpec("vit_tiny_patch16_224", 8, 1, options={"patch_size": 4, "depth": 4, "embed_dim": 16, "num_heads": 2})


def planner(
    scheme: Scheme, spec: EncoderSpec = VIT, images: int = 100, batch_size: int = 16, **settings: Any
) -> Planner:
    method = partial(SimCLR, hidden_dim=16, output_dim=8)
    optimizer = partial(SGD, lr=0.1)
    module = FederatedSSL(
        spec, method, DigitsViews(), optimizer, scheme, rounds=8, batch_size=batch_size, seed=0, **settings
    )
    return Planner(module.settings, [images] * 3)


def test_batch_sizes() -> None:
    assert batch_sizes(planner(LayerWise())) == [16, 8, 32, 64]
    assert batch_sizes(planner(LayerWise(), batch_size=20)) == [20, 8, 16, 32, 64]
    assert batch_sizes(planner(LayerWise(), images=30)) == [16, 8]
    assert batch_sizes(planner(LayerWise(), images=10)) == [10, 8]
    assert batch_sizes(planner(LayerWise(), images=1)) == [2]


def names_and_blocks(planner: Planner) -> list[tuple[str, list[int]]]:
    return [(name, [len(stage.present) for stage in stages]) for name, stages in candidates(planner)]


def test_schemes_with_equal_stages_are_tried() -> None:
    equal = [
        ("progressive", [1, 2, 3, 4]),
        ("progressive", [2, 4]),
        ("layer-wise", [1, 2, 3, 4]),
        ("layer-wise", [2, 4]),
    ]
    found = names_and_blocks(planner(LayerWise(weight_transfer=True)))
    assert sorted(found) == sorted([("end-to-end", [4]), *equal])
    assert sorted(names_and_blocks(planner(LayerWise([3, 1])))) == sorted([*found, ("layer-wise", [3, 4])])


def test_the_configured_scheme_keeps_its_name_beside_schemes_with_the_same_blocks() -> None:
    assert names_and_blocks(planner(LoRA([2])))[:2] == [("lora", [4]), ("end-to-end", [4])]
    assert names_and_blocks(planner(LastLayers()))[0] == ("last-layers", [4])


@pytest.mark.slow
def test_every_combination_is_tried_and_costs_what_the_plan_says() -> None:
    shallow = VIT.options | {"depth": 2}
    plan = planner(LayerWise(), replace(VIT, options=shallow), images=16, alignment=GlobalAlignment())
    tried = choices(plan)
    settings = {(each.scheme, each.batch_size, each.alignment, each.proximal) for each in tried}
    kinds = ("end-to-end", "progressive", "layer-wise")
    assert settings == {(kind, size, on, False) for kind in kinds for size in (16, 8) for on in (True, False)}
    assert len(tried) == len(settings)
    for scheme in (LayerWise(), Progressive()):
        stages = plan.plan(scheme)
        [own] = [c for c in tried if (c.scheme, c.batch_size, c.alignment) == (scheme.name, 16, True)]
        assert own.peak_memory_bytes == max(stage.step.peak for stage in stages)
        assert own.macs_per_image == sum(stage.step.macs for stage in stages) / 2 / 16
        assert own.blocks_per_stage == [1, 1]


def choice(blocks: int = 1, batch: int = 16, alignment: bool = True, macs: float = 1.0, peak: int = 1) -> Choice:
    return Choice("any", [blocks], blocks, batch, alignment, False, peak, macs)


def test_the_order_by_hand() -> None:
    best_first = [
        choice(blocks=4),
        choice(blocks=4, macs=2.0),
        choice(blocks=4, batch=32),
        choice(blocks=1),
        choice(blocks=4, alignment=False),
        choice(blocks=4, batch=8),
    ]
    mixed = [best_first[i] for i in (3, 0, 5, 2, 4, 1)]
    assert sorted(mixed, key=lambda each: preference(each, 16)) == best_first


def test_all_that_fits_fits() -> None:
    found = rank([choice(peak=3), choice(peak=2, blocks=2), choice(peak=1), choice(peak=4)], 16, 3)
    assert found["tried"] == 4
    assert [row["peak_memory_bytes"] for row in found["fits"]] == [2, 3, 1]
    assert (found["cheapest"]["peak_memory_bytes"], found["cheapest"]["missing_bytes"]) == (1, 0)
    assert json.loads(json.dumps(found)) == found


def said(found: dict[str, Any]) -> str:
    console = Console(record=True, width=90)
    print_blocks(budget_tables(found), console)
    return " ".join(console.export_text().split())


def test_the_cheapest_misses_by_so_much() -> None:
    found = rank([choice(peak=300), choice(peak=200, batch=8)], 16, 100)
    assert found["fits"] == []
    assert found["cheapest"]["missing_bytes"] == 100
    setting = "any, 1 blocks a stage, batch 8, alignment on, proximal off"
    assert f"nothing fits 100 B: the cheapest of 2 settings needs 200 B, 100 B too much ({setting})" in said(found)


def test_a_table_has_the_best() -> None:
    text = said(rank([choice(peak=2**20 * size) for size in range(1, 31)], 16, 2**30))
    assert "30 of 30 settings fit 1 GiB" in text
    assert "and 18 more" in text
    unequal = Choice("any", [3, 1], 3, 16, True, False, 1, 1.0)
    assert " 3+1 " in said(rank([unequal], 16, 1))
