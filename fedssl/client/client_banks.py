"""Activation banks of the clients that train in one resident model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fedssl.client.bank import ActivationBank, Rows
from fedssl.client.step_costs import CostBook, StepKey
from fedssl.data.datasets import ImageSet, SampleSet
from fedssl.protocol.messages import Task
from fedssl.utils.seeding import torch_generator
from ssl_methods import Inputs, Method


class NumberedImages(ImageSet):
    """Images represented by their numbers, for clients that train from a bank and need no pixels.

    Args:
        images: Images of the client.
    """

    # Numbers need no thread that reads them ahead.
    in_memory = True

    def __init__(self, images: ImageSet) -> None:
        super().__init__(images.name, images.labels, images.classes, images.image_size, images.channels)

    def _read(self, rows: Tensor) -> Tensor:
        return rows


@dataclass
class Bank:
    """Stored views of one client; replaces the method's augmentation.

    Args:
        content: Description of the sources that the bank was made from.
        macs: Multiply-accumulates of filling the bank.
        views: Tables of the first and second views; image i has the rows i, i + images, i + 2 images, ...
        images: Number of the client's images.
        pairs: Number of rows of an image.
        device: Device of the method, which gets the views.
    """

    content: str
    macs: int
    views: list[Rows]
    images: int
    pairs: int
    device: torch.device

    def __call__(self, numbers: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw a stored first and a stored second view of the images with these numbers (B,).

        Numbers and generator are on the CPU, since the tables lie in main memory or in files, whatever the device.
        """
        first, second = (self._draw(rows, numbers, generator) for rows in self.views)
        return first, second

    def first(self, numbers: Tensor, generator: torch.Generator) -> Tensor:
        """Draw a stored first view."""
        return self._draw(self.views[0], numbers, generator)

    def _draw(self, rows: Rows, numbers: Tensor, generator: torch.Generator) -> Tensor:
        pair = torch.randint(self.pairs, (len(numbers),), generator=generator)
        return rows.read(pair * self.images + numbers).to(self.device, non_blocking=True)


@dataclass(frozen=True)
class TrainingData:
    """Training data of a client.

    Args:
        images: Images of the client, or their numbers in its bank.
        macs: Multiply-accumulates of filling the bank, in this round or an earlier one.
        banked: Whether they are numbers.
    """

    images: SampleSet
    macs: int = 0
    banked: bool = False


class ClientBanks:
    """Banks of all clients: fills them and gives their content to local training.

    A bank follows from the frozen parts, the client's images and the seed alone. So a process that resumes, or takes
    over a client, fills it again with the same content.

    Args:
        rule: Settings of the banks.
        seed: Seed of the run.
    """

    def __init__(self, rule: ActivationBank, seed: int) -> None:
        self.rule = rule
        self._seed = seed
        self._stage = -1
        self._banks: dict[int, Bank] = {}

    @contextmanager
    def __call__(
        self, task: Task, method: Method, images: SampleSet, batch_size: int, book: CostBook, key: StepKey
    ) -> Iterator[TrainingData]:
        """Provide the client's bank: while entered, the method draws its views from it and runs no prefix.

        Args:
            task: Task of the client.
            method: Method, attached to the task's stage.
            images: Images of the client.
            batch_size: Number of images that pass the prefix at a time.
            book: Book in which costs are looked up and noted.
            key: Key of a plain step at that stage.

        Raises:
            InfeasibleBudgetError: The bank exceeds its budget.
        """
        # A single image gives no step, so that its bank would never be read.
        if not task.frozen_ids or len(images) < 2:
            yield TrainingData(images)
            return
        assert isinstance(images, ImageSet)
        bank = self._bank(task, method, images, batch_size, book, replace(key, fills_bank=True))
        prefix, augment, generator = method.prefix, method.augment, method.generator
        method.prefix, method.augment = nn.Sequential(), bank
        method.generator = torch.Generator().manual_seed(generator.initial_seed())
        try:
            yield TrainingData(NumberedImages(images), bank.macs, banked=True)
        finally:
            method.prefix, method.augment, method.generator = prefix, augment, generator

    def _bank(
        self, task: Task, method: Method, images: ImageSet, batch_size: int, book: CostBook, key: StepKey
    ) -> Bank:
        """Return the client's bank, filled anew if its content is out of date."""
        if task.stage.index != self._stage:
            # Nobody returns to an earlier stage: its banks go now, and not one by one as their clients come again.
            self._banks, self._stage = {}, task.stage.index
        bank = self._banks.pop(task.client_id, None)
        if bank is None or bank.content != self.rule.content(task):
            del bank  # before the next one needs the memory
            with book.times("bank"):
                bank = self._fill(task, method, images, batch_size, book, key)
        self._banks[task.client_id] = bank
        return bank

    def _fill(
        self, task: Task, method: Method, images: ImageSet, batch_size: int, book: CostBook, key: StepKey
    ) -> Bank:
        bank = Bank(self.rule.content(task), 0, [], len(images), self.rule.pairs, method.device)
        # The period and not the round: whoever fills the bank again within it must draw the same views.
        numbers = [task.stage.index, self.rule.period(task.round), task.client_id]
        own, method.generator = method.generator, torch_generator(self._seed, "bank", *numbers, device=method.device)
        for pair in range(self.rule.pairs):
            for chunk in torch.arange(len(images)).split(batch_size):
                found, cost = _hidden(method, images, chunk, book, key)
                bank.macs += cost
                if not bank.views:
                    # Only the prefix's first outputs tell their shape.
                    bank.views = self._tables(task, len(images), found)
                for rows, view in zip(bank.views, found, strict=True):
                    rows.write(pair * len(images) + int(chunk[0]), view)
        method.generator = own
        return bank

    def _tables(self, task: Task, images: int, found: Inputs) -> list[Rows]:
        shapes = [tuple(view.shape[1:]) for view in found]
        self.rule.check(task.stage, images, shapes)
        return [Rows(self.rule.pairs * images, shape, self.rule.bits, self.rule.path) for shape in shapes]


def _hidden(method: Method, images: ImageSet, chunk: Tensor, book: CostBook, key: StepKey) -> tuple[Inputs, int]:
    """Return the prefix's outputs for newly drawn views of some images, and their multiply-accumulates."""
    device = next(method.backbone.parameters()).device
    batch = (tensor.to(device, non_blocking=True) for tensor in (images.gather(chunk), images.labels[chunk]))
    inputs = method.inputs(*batch)
    hidden: list[Tensor] = []
    cost = book.step(replace(key, batch_size=len(chunk)), method, lambda: hidden.extend(method.run_prefix(inputs)))
    # Integers are the method's targets, which the method takes from the labels again in every step.
    return tuple(each for each in hidden if each.is_floating_point()), cost.macs
