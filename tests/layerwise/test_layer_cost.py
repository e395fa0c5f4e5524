"""Cost shares of layer-wise training and depth dropout, as published (arXiv 2309.05213; LW-FedSSL v4)."""

import numpy as np
import pytest

from layerwise import EncoderSpec, EndToEnd, LayerWise, build_encoder, layer_shares


@pytest.fixture(scope="module")
def vit_tiny():
    return build_encoder(EncoderSpec(options={"patch_size": 4, "qkv_bias": False}), seed=0)


def shares(encoder, scheme, rounds=12):
    rng = np.random.default_rng(0)
    return layer_shares(encoder, [scheme.for_client(stage, rng) for stage in scheme.stages(12, rounds)])


def percent(values):
    return [round(100 * value, 1) for value in values]


def test_published_ranges(vit_tiny):
    """8-54 % of the communication and 8-39 % of the computation of end-to-end training."""
    costs = shares(vit_tiny, LayerWise())
    communication, computation = (percent(getattr(c, k) for c in costs) for k in ("communication", "computation"))
    assert (communication[0], communication[-1]) == (8.3, 54.2)
    assert (computation[0], computation[-1]) == (8.3, 38.9)
    assert communication == sorted(communication)
    assert computation == sorted(computation)


def test_published_figures_with_half_the_layers(vit_tiny):
    """At most 29 % of the communication and 22 % of the computation."""
    costs = shares(vit_tiny, LayerWise(layer_budget=6))
    assert costs[:6] == shares(vit_tiny, LayerWise())[:6]
    assert percent([costs[-1].communication, costs[-1].computation]) == [29.2, 22.2]
    assert all(cost == costs[5] for cost in costs[5:])


@pytest.mark.parametrize("together", [1, 2, 3])
def test_formulas(vit_tiny, together):
    scheme = LayerWise(together)
    for stage, cost in zip(scheme.stages(12, 12), shares(vit_tiny, scheme), strict=True):
        p, a = len(stage.present), len(stage.trained)
        assert cost.communication == pytest.approx((p + a) / 24)
        assert cost.computation == pytest.approx((p + 2 * a) / 36)


def test_end_to_end_is_the_measure(vit_tiny):
    (cost,) = shares(vit_tiny, EndToEnd())
    assert (cost.communication, cost.computation) == (1, 1)


def test_unequal_blocks_count_as_what_they_are(resnet):
    first, last = (layer_shares(resnet, LayerWise().stages(4, 4))[i] for i in (0, 3))
    sizes = [sum(tensor.nbytes for tensor in block.state_dict().values()) for block in resnet.blocks]
    assert first.communication == sizes[0] / sum(sizes)
    assert last.communication == (sum(sizes) + sizes[3]) / (2 * sum(sizes))
