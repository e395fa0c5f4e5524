"""Content ids of frozen parts: they are made anew when tensors changed, and only then."""

from collections.abc import Callable
from typing import Any

import pytest

from fedssl.devices import Deadline, DeviceProfile
from fedssl.protocol import parts
from fedssl.protocol.messages import Tensors, content_id
from fedssl.server.calibration import Calibration
from layerwise import LayerWise, Progressive, Scheme

FAR = DeviceProfile(down_bytes_per_second=1.0)


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids that the server makes from here on."""
    made: list[str] = []

    def noting(tensors: Tensors) -> str:
        made.append(content_id(tensors))
        return made[-1]

    monkeypatch.setattr(parts, "content_id", noting)
    return made


def ids(world: Any) -> dict[str, str]:
    """Of every part of the global model."""
    server = world.server
    return {name: server.holdings.content_id(name) for name in server.model.parts}


@pytest.mark.parametrize(
    ("scheme", "settings"),
    [
        (LayerWise(weight_transfer=True, renew_heads=True), {}),
        (LayerWise(), {"calibration": Calibration(batch_size=4, when="stage")}),
        (Progressive(layer_budget=2), {}),
    ],
)
def test_known_ids_are_those_of_the_tensors(
    scheme: Scheme, settings: dict[str, Any], make_world: Callable[..., Any]
) -> None:
    world = make_world(scheme, rounds=6, **settings)
    for _ in range(6):
        cohort = world.server.begin_round()
        known = ids(world)
        assert known == {name: content_id(world.server.model.read([name])[name]) for name in known}
        world.server.end_round(world.results(cohort))
    assert ids(world) == {name: content_id(world.server.model.read([name])[name]) for name in known}


def test_a_frozen_part_is_hashed_once(make_world: Callable[..., Any], hashed: list[str]) -> None:
    make_world(LayerWise(), rounds=9).run(9)
    assert len(hashed) == 3  # the stem and the first block in the second stage, the second block in the third


def test_a_round_without_an_update_changes_nothing(make_world: Callable[..., Any], hashed: list[str]) -> None:
    world = make_world(Progressive(), rounds=3, devices=[FAR] * 3, deadline=Deadline(1.0, "drop"))
    known = ids(world)
    hashed.clear()
    assert not world.round().trained
    assert ids(world) == known
    assert not hashed
