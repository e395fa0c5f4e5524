import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from linear_eval import FinetuneSettings, finetune
from linear_eval.finetune import warmup_and_cosine

SETTINGS = FinetuneSettings(epochs=12, warmup_epochs=2, base_lr=0.05, batch_size=21)


def normalize(images: Tensor) -> Tensor:
    return images.float() / 127.5 - 1.0


def images(count: int, channels: int, seed: int, classes: int = 2) -> TensorDataset:
    """Noise on a bright left (class 0) or right half (class 1)."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % classes
    x = torch.randint(0, 90, (count, channels, 8, 8), generator=generator)
    x[y == 0, :, :, :4] += 150
    x[y == 1, :, :, 4:] += 150
    return TensorDataset(x.to(torch.uint8), y)


def toy_encoder(channels: int) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(channels, 8, 4, stride=4), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.1), nn.Flatten()
        )


def run(encoder: nn.Module, channels: int = 1, seed: int = 0, settings: FinetuneSettings = SETTINGS):  # type: ignore[no-untyped-def]
    train, test = images(64, channels, 0), images(64, channels, 1)
    return finetune(encoder, 32, train, test, 2, settings=settings, normalize=normalize, seed=seed, device="cpu")


@pytest.mark.parametrize("channels", [1, 3])
def test_learns_and_leaves_encoder_and_global_state_alone(channels: int) -> None:
    encoder = toy_encoder(channels).requires_grad_(False).eval()
    before, state = copy.deepcopy(encoder.state_dict()), torch.get_rng_state()
    metrics = run(encoder, channels)
    assert metrics.accuracy > 80.0
    assert sum(map(sum, metrics.confusion)) == 64
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert not any(p.requires_grad for p in encoder.parameters())
    assert not encoder.training
    assert torch.equal(torch.get_rng_state(), state)


def test_deterministic_by_seed() -> None:
    encoder, short = toy_encoder(1), replace(SETTINGS, epochs=2, warmup_epochs=0, base_lr=1e-3)
    first = run(encoder, seed=3, settings=short)
    torch.rand(5)
    assert run(encoder, seed=3, settings=short) == first
    assert any(run(encoder, seed=seed, settings=short) != first for seed in (4, 5, 6))


def test_works_inside_inference_mode() -> None:
    encoder, short = toy_encoder(1), replace(SETTINGS, epochs=1, warmup_epochs=0)
    expected = run(encoder, settings=short)
    with torch.inference_mode():
        assert run(encoder, settings=short) == expected


def test_defaults_are_the_papers() -> None:
    assert FinetuneSettings() == FinetuneSettings(40, 10, 1e-3, 1e-5, 256)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs"),
        ({"batch_size": 0}, "batch_size"),
        ({"epochs": 5, "warmup_epochs": 5}, "below epochs = 5, got 5"),
        ({"warmup_epochs": -1}, "warmup_epochs"),
        ({"base_lr": 0.0}, "base_lr"),
        ({"weight_decay": -1.0}, "weight_decay"),
    ],
)
def test_settings_refuse(change: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FinetuneSettings(**change)  # type: ignore[arg-type]


def test_one_class_is_refused() -> None:
    data = images(8, 1, 0)
    with pytest.raises(ValueError, match="2 or more classes, got 1"):
        finetune(toy_encoder(1), 32, data, data, 1, settings=SETTINGS, normalize=normalize, seed=0, device="cpu")


def test_schedule_by_hand() -> None:
    for warmup, steps, expected in (
        (2, 6, [0.5, 1.0, 1.0, 0.5 * (1 + 0.5**0.5), 0.5, 0.5 * (1 - 0.5**0.5)]),
        (1, 3, [1.0, 1.0, 0.5]),
        (0, 4, [1.0, 0.5 * (1 + 0.5**0.5), 0.5, 0.5 * (1 - 0.5**0.5)]),
    ):
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        schedule = warmup_and_cosine(optimizer, warmup, steps)
        rates = []
        for _ in range(steps):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        assert rates == pytest.approx(expected)
