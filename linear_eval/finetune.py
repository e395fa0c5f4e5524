"""Fine-tuning of an encoder together with a new linear classifier on labelled images."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from linear_eval.metrics import ClassificationMetrics, classification_metrics

SMALLEST_LR, LARGEST_LR = 1e-37, 1e3
LabelledImages: TypeAlias = Dataset[tuple[Tensor, int]]
Normalize: TypeAlias = Callable[[Tensor], Tensor]


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
    *,
    settings: FinetuneSettings,
    normalize: Normalize,
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
        ValueError: There are fewer than 2 classes.
    """
    if num_classes < 2:
        raise ValueError(f"fine-tuning needs 2 or more classes, got {num_classes}")
    device = torch.device(device)
    gpus = range(torch.cuda.device_count()) if device.type == "cuda" else []
    # RandAugment and dropout draw from global generators, which are put back afterwards. ``torch.manual_seed`` would
    # seed a GPU's too, which is not put back by a run on the CPU.
    with torch.inference_mode(False), torch.random.fork_rng(devices=gpus):
        torch.default_generator.manual_seed(seed)
        if gpus:
            torch.cuda.manual_seed_all(seed)
        model = nn.Sequential(copy.deepcopy(encoder), nn.Linear(feature_dim, num_classes))
        model.to(device).requires_grad_(True)
        _train(model, train, settings, normalize, seed)
        return _test(model, test, num_classes, settings.batch_size, normalize)


def _train(
    model: nn.Sequential, data: LabelledImages, settings: FinetuneSettings, normalize: Normalize, seed: int
) -> None:
    # batch normalisation cannot train on a batch of one image
    lone_image = len(data) > 1 and len(data) % settings.batch_size == 1
    order = torch.Generator().manual_seed(seed)
    loader = DataLoader(data, settings.batch_size, shuffle=True, generator=order, drop_last=lone_image)
    lr = settings.base_lr * settings.batch_size / 256
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=settings.weight_decay)
    schedule = warmup_and_cosine(optimizer, settings.warmup_epochs * len(loader), settings.epochs * len(loader))
    augment, device = v2.RandAugment(), model[1].weight.device
    model.train()
    for _ in range(settings.epochs):
        for images, labels in loader:
            # one call on the whole batch would draw the same operations for all its images
            images = torch.stack([augment(image) for image in images]).to(device)
            with torch.enable_grad():
                loss = F.cross_entropy(model(normalize(images)), _checked(labels, model[1].out_features).to(device))
                optimizer.zero_grad()
                loss.backward()
            optimizer.step()
            schedule.step()


def _checked(labels: Tensor, num_classes: int) -> Tensor:
    """Refuse labels out of range while they are on the CPU: a GPU would abort, and -100 would be left out."""
    if not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ValueError(f"labels must be 0 to {num_classes - 1}, got {int(labels.min())} to {int(labels.max())}")
    return labels


def warmup_and_cosine(optimizer: Optimizer, warmup_steps: int, steps: int) -> LRScheduler:
    """Return a schedule that rises linearly from 1 / warmup_steps of the learning rate, then falls along half a cosine.

    Source: Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017, one cycle; the
    warm-up of Goyal et al., "Accurate, Large Minibatch SGD", 2017.
    """
    cosine = CosineAnnealingLR(optimizer, steps - warmup_steps)
    if not warmup_steps:
        return cosine
    rise = LinearLR(optimizer, 1 / warmup_steps, total_iters=warmup_steps - 1)
    return SequentialLR(optimizer, [rise, cosine], [warmup_steps])


def _test(
    model: nn.Sequential, data: LabelledImages, num_classes: int, batch_size: int, normalize: Normalize
) -> ClassificationMetrics:
    model.eval()
    target, predicted = [], []
    with torch.no_grad():
        for images, labels in DataLoader(data, batch_size):
            predicted.append(model(normalize(images.to(model[1].weight.device))).argmax(dim=1).cpu())
            target.append(labels)
    return classification_metrics(torch.cat(target), torch.cat(predicted), num_classes)
