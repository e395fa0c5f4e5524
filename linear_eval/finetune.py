"""Fine-tuning of an encoder together with a new linear classifier on labelled images."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import cos, pi
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from linear_eval.metrics import ClassificationMetrics, classification_metrics

SMALLEST_LR, LARGEST_LR = 1e-37, 1e3
LabelledImages: TypeAlias = Dataset[tuple[Tensor, int]]


@dataclass(frozen=True)
class FinetuneSettings:
    """Settings of fine-tuning; the defaults are the paper's (Tun et al., arXiv 2401.11647v4, experimental settings).

    Args:
        epochs: Passes over the training images.
        warmup_epochs: Epochs of linear warm-up, part of ``epochs``.
        base_lr: AdamW's peak learning rate at batch 256; the rate used is base_lr * batch_size / 256.
        weight_decay: AdamW's decoupled weight decay.
        batch_size: Images a step.

    Raises:
        ValueError: A value is out of its range.
    """

    epochs: int = 40
    warmup_epochs: int = 10
    base_lr: float = 1e-3
    weight_decay: float = 1e-5
    batch_size: int = 256

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1:
            raise ValueError(f"epochs and batch_size must be 1 or more, got {self.epochs} and {self.batch_size}")
        if not 0 <= self.warmup_epochs < self.epochs:
            raise ValueError(
                f"warmup_epochs must be at least 0 and below epochs = {self.epochs}, got {self.warmup_epochs}"
            )
        if not SMALLEST_LR <= self.base_lr <= LARGEST_LR:
            raise ValueError(f"base_lr must be above 0 and at most {LARGEST_LR:g}, got {self.base_lr}")
        if not 0 <= self.weight_decay < float("inf"):
            raise ValueError(f"weight_decay must be 0 or more and finite, got {self.weight_decay}")


def finetune(
    encoder: nn.Module,
    feature_dim: int,
    train: LabelledImages,
    test: LabelledImages,
    num_classes: int,
    settings: FinetuneSettings,
    normalize: Callable[[Tensor], Tensor],
    seed: int,
    device: torch.device | str,
) -> ClassificationMetrics:
    """Fine-tune a copy of an encoder with a linear classifier and test it once, after the last epoch.

    Downstream protocol of Tun et al. (arXiv 2401.11647v4): AdamW, linear warm-up, cosine decay, RandAugment (two
    operations of magnitude 9, drawn for each image). All parameters of the copy are trained, also those frozen in the
    original. The given encoder and the global random state stay unchanged.

    Args:
        encoder: Maps normalised images to features (B, feature_dim); without projection or prediction head.
        feature_dim: Width of the features.
        train: Labelled training images, uint8 (C, H, W) with C of 1 or 3, and their class.
        test: Labelled test images of the same kind. They are not augmented and influence no choice.
        num_classes: Number of classes, 2 or more.
        settings: Length, learning rate and batch size.
        normalize: Maps a uint8 batch (B, C, H, W) on the device to the encoder's float input.
        seed: Seed of the classifier, the order of images, the augmentation and the encoder's dropout.
        device: Device to train on.

    Raises:
        ValueError: A set is empty, images are not uint8 (C, H, W) with 1 or 3 channels, a class is out of range, or
            features are not (B, feature_dim).
    """
    if num_classes < 2 or feature_dim < 1:
        raise ValueError(f"need num_classes >= 2 and feature_dim >= 1, got {num_classes} and {feature_dim}")
    _check_images("train", train)
    _check_images("test", test)
    device = torch.device(device)
    with torch.inference_mode(False), _seeded(seed, device):
        model = nn.Sequential(copy.deepcopy(encoder), nn.Linear(feature_dim, num_classes))
        model.to(device).requires_grad_(True)
        _train(model, train, num_classes, settings, normalize, seed, device)
        return _test(model, test, num_classes, settings.batch_size, normalize, device)


def _train(
    model: nn.Sequential,
    data: LabelledImages,
    num_classes: int,
    settings: FinetuneSettings,
    normalize: Callable[[Tensor], Tensor],
    seed: int,
    device: torch.device,
) -> None:
    loader = _training_loader(data, settings.batch_size, seed)
    warmup, total = settings.warmup_epochs * len(loader), settings.epochs * len(loader)
    lr = settings.base_lr * settings.batch_size / 256
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warmup_cosine(step, warmup, total))
    augment = v2.RandAugment()
    model.train()
    for _ in range(settings.epochs):
        for images, labels in loader:
            _check_labels(labels, num_classes)
            # one call on the whole batch would draw the same operations for all its images
            images = torch.stack([augment(image) for image in images]).to(device)
            with torch.enable_grad():
                loss = F.cross_entropy(_logits(model, normalize(images)), labels.to(device))
                optimizer.zero_grad()
                loss.backward()
            optimizer.step()
            schedule.step()


def _test(
    model: nn.Sequential,
    data: LabelledImages,
    num_classes: int,
    batch_size: int,
    normalize: Callable[[Tensor], Tensor],
    device: torch.device,
) -> ClassificationMetrics:
    model.eval()
    target, predicted = [], []
    with torch.no_grad():
        for images, labels in DataLoader(data, batch_size):
            _check_labels(labels, num_classes)
            predicted.append(_logits(model, normalize(images.to(device))).argmax(dim=1).cpu())
            target.append(labels)
    return classification_metrics(torch.cat(target), torch.cat(predicted), num_classes)


def _training_loader(data: LabelledImages, batch_size: int, seed: int) -> DataLoader[tuple[Tensor, Tensor]]:
    size = len(data)
    # batch normalisation cannot train on a batch of one image
    lone_image = size > 1 and size % batch_size == 1
    generator = torch.Generator().manual_seed(seed)
    return DataLoader(data, batch_size, shuffle=True, generator=generator, drop_last=lone_image)


def _logits(model: nn.Sequential, inputs: Tensor) -> Tensor:
    features = model[0](inputs)
    if features.shape != (len(inputs), model[1].in_features):
        raise ValueError(f"the encoder must give features (B, {model[1].in_features}), got {tuple(features.shape)}")
    return model[1](features)


def _check_images(name: str, data: LabelledImages) -> None:
    if len(data) == 0:
        raise ValueError(f"the {name} set has no images")
    image = data[0][0]
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] not in (1, 3):
        raise ValueError(f"{name} images must be uint8 (1 or 3, H, W), got {image.dtype} {tuple(image.shape)}")


def _check_labels(labels: Tensor, num_classes: int) -> None:
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise ValueError(f"labels must be within 0..{num_classes - 1}, got {low}..{high}")


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the global generators, which RandAugment and dropout draw from, and restore them afterwards."""
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if on_gpu else []):
        # not torch.manual_seed: on the CPU it would also seed GPUs, which are not put back
        torch.default_generator.manual_seed(seed)
        if on_gpu:
            torch.cuda.manual_seed_all(seed)
        yield


def warmup_cosine(step: int, warmup_steps: int, total_steps: int) -> float:
    """Return the factor on a step's learning rate: linear rise to 1, then half a cosine down towards 0.

    Source: Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017, one cycle; the
    warm-up of Goyal et al., "Accurate, Large Minibatch SGD", 2017. The first step has factor 1 / warmup_steps, not 0.

    Args:
        step: Steps already taken, from 0.
        warmup_steps: Length of the warm-up, 0 for none.
        total_steps: Length of the training, warm-up included. From there on the factor is 0.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if step >= total_steps:
        return 0.0
    return 0.5 * (1.0 + cos(pi * (step - warmup_steps) / (total_steps - warmup_steps)))
