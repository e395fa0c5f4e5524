"""What is kept of an evaluation for pictures."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from linear_eval import EvaluationDetails, EvaluationSettings, Features, evaluate_features
from linear_eval.evaluation_details import (
    Evaluated,
    collect_details,
    layer_outputs,
    principal_components,
    small_numbers,
    small_pictures,
    spread,
)


class Images:
    """An image of one pixel, whose value is its position."""

    classes = ("cat", "dog")

    def __init__(self, number: int) -> None:
        self.pixels = torch.arange(number, dtype=torch.uint8).reshape(-1, 1, 1, 1)

    def gather(self, indices: Tensor) -> Tensor:
        return self.pixels[indices]


def evaluated(train: int, test: int) -> Evaluated:
    """Features on a circle: the angle grows with the position, the class is that of the half."""
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(1, 3))
    parts = []
    for number in (train, test):
        angle = torch.linspace(0.1, 3.0, number)
        parts.append(Features(torch.stack([angle.cos(), angle.sin()], dim=1), (torch.arange(number) * 2 // number)))
    report = evaluate_features(*parts, 2, EvaluationSettings())
    return Evaluated(encoder, {"flat": encoder[0], "linear": encoder[1]}, *parts, report)


@pytest.fixture
def details() -> EvaluationDetails:
    each = {"encoder": evaluated(30, 12), "random_init": evaluated(30, 12)}
    return collect_details(each, Images(30), Images(12), lambda images: images.float(), pictures=True)


def test_queries_represent_the_classes_and_their_neighbours_are_the_nearest(details: EvaluationDetails) -> None:
    assert details.query_labels.tolist() == [0] * 5 + [1] * 5
    positions = details.query_images.ravel()
    assert positions.tolist() == [0, 1, 3, 4, 5, 6, 7, 9, 10, 11]  # of 12 images, ten evenly spaced
    encoder = details.encoders["encoder"]
    assert encoder.neighbour_images.shape == (10, 5, 1, 1, 1)
    nearest = encoder.neighbour_images.reshape(10, 5)
    angles = np.linspace(0.1, 3.0, 30)[nearest] - np.linspace(0.1, 3.0, 12)[positions][:, None]
    assert (np.abs(angles[:, 0]) <= 0.051).all()  # half the distance of two training images
    assert (np.diff(np.abs(angles), axis=1) >= -1e-6).all()
    assert (encoder.neighbour_labels == nearest * 2 // 30).all()


def test_images_are_kept_only_when_asked_for() -> None:
    each = {"encoder": evaluated(30, 12), "start": evaluated(30, 12)}
    found = collect_details(each, Images(30), Images(12), lambda images: images.float())
    assert not found.has_pictures
    assert not [key for key, array in found.as_arrays().items() if array.dtype == np.uint8 and array.size]
    assert found.encoders["start"].neighbour_labels.shape == (10, 5)
    assert len(small_pictures(torch.zeros(0, 3, 100, 100, dtype=torch.uint8))) == 0


def test_maps_layers_and_confusion(details: EvaluationDetails) -> None:
    encoder = details.encoders["encoder"]
    assert encoder.map.shape == (12, 2)
    assert details.map_labels.tolist() == [0] * 6 + [1] * 6
    assert encoder.map_shares.sum() == pytest.approx(1.0)
    assert encoder.confusion.sum() == 12
    assert details.layers.tolist() == ["flat", "linear"]
    assert np.allclose(encoder.similarity, 1.0, atol=1e-5)  # a line stays a line
    assert [output.shape for output in details.layer_outputs] == [(12, 1), (12, 3)]


def test_the_file_gives_back_what_was_kept(details: EvaluationDetails, tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "d.npz", **details.as_arrays(), more=np.zeros(1))
    with np.load(tmp_path / "d.npz", allow_pickle=False) as file:
        again = EvaluationDetails.from_arrays(dict(file))
    first, second = details.as_arrays(), again.as_arrays()
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[key], second[key]) for key in first)


def test_spread_by_hand() -> None:
    labels = torch.tensor([1, 0, 1, 0, 1, 1])
    assert spread(labels, 3).tolist() == [3, 2, 5]  # sorted by class: 1 3 | 0 2 4 5, of which the 2nd, 4th and 6th
    assert spread(labels, 9).tolist() == [1, 3, 0, 2, 4, 5]


def test_large_pictures_shrink_and_layers_are_scaled() -> None:
    halves = torch.cat([torch.full((1, 3, 128, 64), 10), torch.full((1, 3, 128, 64), 20)], dim=3).byte()
    small = small_pictures(halves)
    assert small.shape == (1, 3, 64, 64)
    assert small[0, 0, 0, [0, 63]].tolist() == [10, 20]
    assert small_numbers(torch.tensor([[1e9, -2e9], [0.0, 1e9]])).tolist() == [[0.5, -1.0], [0.0, 0.5]]


class Tokens(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2)


def test_outputs_are_averaged_over_positions_whatever_the_batch() -> None:
    encoder = nn.Sequential(nn.ReLU(), Tokens(), nn.Dropout(0.9), nn.Flatten())
    images = torch.arange(-4.0, 20.0).reshape(3, 2, 2, 2)
    layers = {"map": encoder[0], "tokens": encoder[2], "flat": encoder[3]}
    for batch in (1, 2, 64):
        maps, tokens, flat = layer_outputs(encoder, layers, images, batch)
        assert maps.tolist() == tokens.tolist() == [[0.0, 1.5], [5.5, 9.5], [13.5, 17.5]]
        assert flat.shape == (3, 8)
    assert encoder.training
    assert not encoder[0]._forward_hooks


def test_components_by_hand() -> None:
    # Along the first axis -6, 0, 6 around the mean (sum of squares 72), along the third 2, -4, 2 (sum 24).
    x = torch.tensor([[1.0, 5.0, 9.0], [7.0, 5.0, 3.0], [13.0, 5.0, 9.0]])
    coordinates, shares = principal_components(x)
    assert coordinates[:, 1].tolist() == pytest.approx([-2.0, 4.0, -2.0], abs=1e-5)  # turned: 4 is furthest from 0
    assert sorted(coordinates[:, 0].tolist()) == pytest.approx([-6.0, 0.0, 6.0], abs=1e-5)
    assert shares.tolist() == pytest.approx([0.75, 0.25])


def test_the_sign_does_not_depend_on_that_of_the_features() -> None:
    x = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(principal_components(x)[0], principal_components(-x)[0])


def test_constant_features_lie_on_one_point() -> None:
    coordinates, shares = principal_components(torch.full((4, 3), 2.0))
    assert coordinates.tolist() == [[0.0, 0.0]] * 4
    assert shares.tolist() == [0.0, 0.0]
