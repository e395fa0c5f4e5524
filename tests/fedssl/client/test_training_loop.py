"""The training loop."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from fedssl.client import step_costs
from fedssl.client.step_costs import CostBook, StepKey
from fedssl.client.training_loop import NonFiniteLossError, fits, shuffled_batches, train_epochs
from fedssl.data.datasets import ArrayImages, FileImages, ImageSet
from fedssl.utils.files import check_plain
from layerwise import EndToEnd, StepCost
from ssl_methods import StepOutput

ANY = StepKey(stage=0, extent=3, blocks=3)


def numbered(number: int) -> ArrayImages:
    """Image i has pixels of value i."""
    pixels = torch.arange(number, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 8, 8)
    return ArrayImages("numbered", pixels, torch.zeros(number), ["a"])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pixels_of(images: ImageSet, batch_size: int, source: torch.Generator) -> list[Tensor]:
    """The images of one epoch's batches."""
    return [batch for batch, _ in shuffled_batches(images, batch_size, source)]


@pytest.fixture
def run_epochs(make_model: Callable[..., Any]) -> Callable[..., Any]:
    """Trains a fresh model and gives report, method and costs."""

    def run(images: ImageSet, epochs: int = 1, batch_size: int = 4, method: Any = "SimCLR") -> Any:
        model = make_model(method)
        model.attach(EndToEnd().stages(3, 1)[0])
        model.method.generator = generator(1)
        book = CostBook()
        report = train_epochs(model.method, images, epochs, batch_size, generator(), book, ANY)
        return report, model, book

    return run


# --- batches


@pytest.mark.parametrize(("number", "sizes"), [(12, [4, 4, 4]), (10, [4, 4, 2]), (2, [2]), (4, [4])])
def test_an_epoch_has_every_image_once(number: int, sizes: list[int]) -> None:
    batches = pixels_of(numbered(number), 4, generator())
    assert [len(batch) for batch in batches] == sizes
    assert sorted(torch.cat(batches)[:, 0, 0, 0].tolist()) == list(range(number))
    assert all(batch.dtype == torch.uint8 and batch.shape[1:] == (1, 8, 8) for batch in batches)


@pytest.mark.parametrize(("number", "sizes"), [(9, [4, 4]), (1, []), (0, []), (5, [4])])
def test_no_batch_of_one(number: int, sizes: list[int]) -> None:
    assert [len(batch) for batch in pixels_of(numbered(number), 4, generator())] == sizes


def test_order_follows_the_generator_and_changes_from_epoch_to_epoch() -> None:
    source = generator(5)
    first, second = (torch.cat(pixels_of(numbered(20), 4, source)) for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(first, torch.cat(pixels_of(numbered(20), 4, generator(5))))


@pytest.mark.parametrize("number", [2, 11, 13])
def test_files_give_the_batches_of_memory(number: int, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (number, 8, 8), dtype=np.uint8)
    paths = [tmp_path / f"{i}.png" for i in range(number)]
    for path, image in zip(paths, pixels, strict=True):
        Image.fromarray(image).save(path)
    labels = torch.arange(number) % 3
    files = FileImages("files", paths, labels, ["a", "b", "c"], 8, 1)
    memory = ArrayImages("memory", torch.from_numpy(pixels)[:, None], labels, ["a", "b", "c"])
    from_files, from_memory = (list(shuffled_batches(s, 5, generator())) for s in (files, memory))
    assert len(from_files) == len(from_memory)
    for (images, labels), (expected, classes) in zip(from_files, from_memory, strict=True):
        assert torch.equal(images, expected)
        assert torch.equal(labels, classes)


@pytest.mark.parametrize("fitting", [True, False])
def test_a_device_gets_the_batches_of_main_memory(
    fitting: bool, monkeypatch: pytest.MonkeyPatch, noise: Callable[..., ArrayImages]
) -> None:
    """All images at once if they fit, else one batch ahead; cpu:0 stands for a GPU."""
    monkeypatch.setattr("fedssl.client.training_loop.fits", lambda *_: fitting)
    images = noise(11).subset(torch.tensor([7, 3, 5, 1, 0, 2, 9, 8, 10]))
    there = shuffled_batches(images, 4, generator(), torch.device("cpu:0"))
    here = list(shuffled_batches(images, 4, generator()))
    for (samples, labels), (expected, classes) in zip(there, here, strict=True):
        assert torch.equal(samples, expected)
        assert torch.equal(labels, classes)
    assert len(here) == 2, "the last image alone is no batch"


def test_a_client_fits_if_a_quarter_of_the_free_memory_holds_its_images(
    monkeypatch: pytest.MonkeyPatch, noise: Callable[..., ArrayImages]
) -> None:
    images = noise(10)
    needed = images.gather(torch.arange(10)).nbytes
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    for free, expected in ((4 * needed, True), (4 * needed - 4, False)):
        monkeypatch.setattr("torch.cuda.mem_get_info", lambda _, free=free: (free, 2**40))
        assert fits(images, torch.device("cuda")) is expected


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    files = FileImages("files", [tmp_path / "broken.png"] * 3, torch.zeros(3), ["a"], 8, 1)
    with pytest.raises(ValueError, match=r"broken\.png"):
        list(shuffled_batches(files, 2, generator()))


# --- epochs


def test_report_adds_up_the_steps(run_epochs: Callable[..., Any], noise: Callable[..., Any]) -> None:
    report, _, book = run_epochs(noise(10), epochs=3)
    four, two = book.costs[replace(ANY, batch_size=4)], book.costs[replace(ANY, batch_size=2)]
    assert report.steps == 9
    assert report.macs == 3 * (2 * four.macs + two.macs)
    assert report.activation_bytes == four.activation_bytes > two.activation_bytes
    assert 0 < report.loss < 10


def test_no_step_without_a_pair(run_epochs: Callable[..., Any], noise: Callable[..., Any]) -> None:
    for number in (0, 1):
        report, _, book = run_epochs(noise(number), epochs=2)
        assert (report.steps, report.macs, report.activation_bytes) == (0, 0, 0)
        assert math.isnan(report.loss)
        assert not book.costs


def test_loss_falls(run_epochs: Callable[..., Any], noise: Callable[..., Any]) -> None:
    short, long = (run_epochs(noise(16), epochs=epochs)[0].loss for epochs in (1, 25))
    assert long < short


@pytest.mark.parametrize("momentum", [0.0, 1.0])
def test_targets_follow_every_step(
    momentum: float, run_epochs: Callable[..., Any], methods: dict[str, Any], noise: Callable[..., Any]
) -> None:
    def weights(images: int) -> tuple[Tensor, Tensor]:
        _, model, _ = run_epochs(noise(images), method=partial(methods["BYOL"], momentum=momentum))
        projector, target = model.method.projector, model.method.target.copy[1]
        return projector.layers[0].weight, target.layers[0].weight

    (online, target), (untrained, _) = weights(10), weights(0)
    assert not torch.equal(online, untrained)
    assert torch.equal(target, online if momentum == 0 else untrained)


def test_a_loss_that_is_not_finite_is_an_error(
    run_epochs: Callable[..., Any], methods: dict[str, Any], noise: Callable[..., Any]
) -> None:
    class Diverging(methods["SimCLR"].func):  # type: ignore[misc]
        def step(self, hidden: tuple[Tensor, Tensor]) -> StepOutput:
            output = super().step(hidden)
            return StepOutput(output.loss * math.inf, output.projections)

    with pytest.raises(NonFiniteLossError, match="loss inf after 1 local steps"):
        run_epochs(noise(4), epochs=2, method=lambda *a: Diverging(*a, hidden_dim=16, output_dim=8))


# --- costs


def test_costs_are_measured_once_a_kind(
    make_model: Callable[..., Any], noise: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = []

    class CountingMeter(step_costs.StepMeter):
        def cost(self) -> StepCost:
            measured.append(super().cost())
            return measured[-1]

    monkeypatch.setattr(step_costs, "StepMeter", CountingMeter)
    model = make_model()
    model.attach(EndToEnd().stages(3, 1)[0])
    book = CostBook()
    other = replace(ANY, remembers=True)
    for key in (ANY, ANY, other, ANY):
        train_epochs(model.method, noise(10), 2, 4, generator(), book, key)
    assert set(book.costs) == {replace(key, batch_size=size) for key in (ANY, other) for size in (2, 4)}
    assert measured == list(book.costs.values())
    assert all(cost.macs > 0 and cost.activation_bytes > 0 for cost in measured)


def test_costs_are_saved_as_plain_values() -> None:
    book, other = CostBook(), CostBook()
    book.costs = {ANY: StepCost(2, 3), replace(ANY, batch_size=4, banked=True, budget=5): StepCost(6, 7)}
    state = book.state_dict()
    check_plain(state)
    other.load_state_dict(state)
    assert other.costs == book.costs
    assert other.state_dict() == state


def test_measuring_does_not_change_the_result(
    make_model: Callable[..., Any], noise: Callable[..., Any], snapshot: Callable[..., Any]
) -> None:
    outcomes = []
    for known in ({}, {replace(ANY, batch_size=size): StepCost(1, 1) for size in (4, 2)}):
        model = make_model()
        model.attach(EndToEnd().stages(3, 1)[0])
        model.method.generator = generator(1)
        book = CostBook()
        book.costs = known
        train_epochs(model.method, noise(10), 2, 4, generator(), book, ANY)
        outcomes.append(snapshot(model))
    assert all(torch.equal(tensor, outcomes[1][key]) for key, tensor in outcomes[0].items())


def test_time_is_split_into_the_phases_of_a_step(run_epochs: Callable[..., Any], noise: Callable[..., Any]) -> None:
    _, _, book = run_epochs(noise(10))
    seconds = book.times.seconds()
    assert list(seconds) == ["augmentation", "forward", "backward", "optimizer"]
    assert all(value > 0 for value in seconds.values())


def test_the_squared_loss_is_a_mean_over_steps(run_epochs: Callable[..., Any], noise: Callable[..., Any]) -> None:
    one, _, _ = run_epochs(noise(4))
    assert one.squared_loss == pytest.approx(one.loss**2, rel=1e-5)
    many, _, _ = run_epochs(noise(12))
    assert many.squared_loss > many.loss**2
