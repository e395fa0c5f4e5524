from functools import partial
from pathlib import Path
from typing import Any

import pytest
from torch.optim import SGD

from fedssl import FederatedSSL
from fedssl.planning.command import check_plot
from fedssl.planning.plan import Planner
from fedssl.planning.plot import Curves, all_curves, plan_figure
from fedssl.runs.report.theme import save_figure
from layerwise import EncoderSpec, EndToEnd, LayerWise, Progressive, Scheme
from ssl_methods import DigitsViews, SimCLR

VIT = EncoderSpec("vit_tiny_patch16_224", 8, 1, options={"patch_size": 4, "depth": 4, "embed_dim": 16, "num_heads": 2})
CURVES = dict.fromkeys(("end-to-end", "layer-wise (configured)"), Curves([1.0, 2.0], [3.0, 1.0], [1.0, 2.0]))


def curves(scheme: Scheme, rounds: int = 8, **settings: Any) -> dict[str, Curves]:
    method = partial(SimCLR, hidden_dim=16, output_dim=8)
    module = FederatedSSL(VIT, method, DigitsViews(), partial(SGD, lr=0.1), scheme, rounds, seed=0, **settings)
    return all_curves(Planner(module.settings, [20, 30]))


def test_curves_of_every_scheme() -> None:
    found = curves(LayerWise())
    assert list(found) == ["end-to-end", "progressive", "layer-wise (configured)"]
    whole, progressive, layer_wise = found.values()
    assert len({len(each.memory) for each in found.values()} | {8}) == 1
    assert whole.memory[-1] == progressive.memory[-1] > layer_wise.memory[-1]
    assert len(set(whole.macs)) == 1
    assert progressive.macs == sorted(progressive.macs)
    assert whole.traffic[7] == pytest.approx(8 * whole.traffic[0])
    assert layer_wise.traffic[7] < progressive.traffic[7] < whole.traffic[7]


def test_the_configured_scheme_has_a_line_of_its_own_if_it_is_another() -> None:
    assert list(curves(Progressive(2)))[-1] == "progressive (configured)"
    assert list(curves(EndToEnd())) == ["end-to-end (configured)", "progressive", "layer-wise"]


def test_schemes_that_cannot_share_the_rounds_are_left_out() -> None:
    assert list(curves(EndToEnd(), rounds=7)) == ["end-to-end (configured)"]
    assert len(curves(EndToEnd(), rounds=6)["layer-wise"].memory) == 6


@pytest.mark.parametrize(("name", "start"), [("plan.png", b"\x89PNG"), ("plan.SVG", b"<?xml")])
def test_the_same_plan_gives_the_same_file(tmp_path: Path, name: str, start: bytes) -> None:
    files = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        save_figure(plan_figure(CURVES), tmp_path / folder / name)
        files.append((tmp_path / folder / name).read_bytes())
    assert files[0].startswith(start)
    assert files[0] == files[1]


@pytest.mark.parametrize(
    ("path", "message"), [("plan.pdf", r"must end in \.png or \.svg"), ("absent/plan.png", "no folder 'absent'")]
)
def test_what_cannot_be_drawn(path: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_plot(Path(path))
