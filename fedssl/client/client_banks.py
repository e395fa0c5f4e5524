"""The banks of the clients that train in one resident model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedssl.client.bank import ActivationBank, Rows
from fedssl.client.training_loop import CostBook
from fedssl.data.datasets import ImageSet, SampleSet
from fedssl.protocol.messages import Task
from fedssl.utils.seeding import torch_generator
from ssl_methods import Inputs, Method


class NumberedImages(ImageSet):
    """A client's images without their pixels: each is its number.

    Args:
        images: The client's images.
    """

    in_memory = True

    def __init__(self, images: ImageSet) -> None:
        super().__init__(images.name, images.labels, images.classes, images.image_size, images.channels)

    def _read(self, rows: Tensor) -> Tensor:
        return rows


@dataclass
class Bank:
    """One client's stored views; takes the place of a method's augmentation.

    Args:
        content: What it was made from.
        macs: Multiply-accumulates of filling it.
        views: The table of each view; image i has the rows i, i + images, i + 2 images, ...
        images: Images of the client.
        pairs: Rows of an image.
    """

    content: str
    macs: int
    views: list[Rows]
    images: int
    pairs: int

    def __call__(self, numbers: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A stored view of either kind of the images with these numbers (B,)."""
        first, second = (self._draw(rows, numbers, generator) for rows in self.views)
        return first, second

    def first(self, numbers: Tensor, generator: torch.Generator) -> Tensor:
        """A stored view of the first kind."""
        return self._draw(self.views[0], numbers, generator)

    def _draw(self, rows: Rows, numbers: Tensor, generator: torch.Generator) -> Tensor:
        pair = torch.randint(self.pairs, (len(numbers),), generator=generator)
        return rows.read(pair * self.images + numbers.cpu()).to(numbers.device)


@dataclass(frozen=True)
class Source:
    """What a client trains on.

    Args:
        images: Its images, or their numbers in its bank.
        macs: Multiply-accumulates of filling the bank, in this round or before.
        kind: Tells steps from a bank from others, in the book of costs.
    """

    images: SampleSet
    macs: int = 0
    kind: str = ""


class ClientBanks:
    """Fills the clients' banks and gives local training their content.

    A bank follows from the frozen parts, the client's images and the seed alone, so that one that a process lost, or
    that another process had, is filled again with the same.

    Args:
        rule: What banks hold and when they are filled.
        seed: Of the run.
    """

    def __init__(self, rule: ActivationBank, seed: int) -> None:
        self.rule = rule
        self._seed = seed
        self._stage = -1
        self._banks: dict[int, Bank] = {}

    @contextmanager
    def __call__(
        self, task: Task, method: Method, images: SampleSet, batch_size: int, book: CostBook, kind: str
    ) -> Iterator[Source]:
        """While entered, the method's views come from the client's bank, and it runs no prefix.

        Args:
            task: What the client does.
            method: Attached to the task's stage.
            images: The client's images.
            batch_size: Images that pass the prefix at a time.
            book: Where costs are looked up and noted.
            kind: Prefixes of one kind cost the same.

        Raises:
            InfeasibleBudgetError: The bank is larger than its budget.
        """
        if not task.frozen_ids or len(images) < 2:
            yield Source(images)
            return
        assert isinstance(images, ImageSet)
        bank = self._bank(task, method, images, batch_size, book, f"{kind}, filling the bank")
        prefix, augment = method.prefix, method.augment
        method.prefix, method.augment = nn.Sequential(), bank
        try:
            yield Source(NumberedImages(images), bank.macs, ", from the bank")
        finally:
            method.prefix, method.augment = prefix, augment

    def _bank(self, task: Task, method: Method, images: ImageSet, batch_size: int, book: CostBook, kind: str) -> Bank:
        """The client's bank, filled anew if it is not what it has to be."""
        if task.stage.index != self._stage:
            self._banks, self._stage = {}, task.stage.index
        bank = self._banks.pop(task.client_id, None)
        if bank is None or bank.content != self.rule.content(task):
            del bank  # before the next one needs the memory
            with book.times("bank"):
                bank = self._fill(task, method, images, batch_size, book, kind)
        self._banks[task.client_id] = bank
        return bank

    def _fill(self, task: Task, method: Method, images: ImageSet, batch_size: int, book: CostBook, kind: str) -> Bank:
        bank = Bank(self.rule.content(task), 0, [], len(images), self.rule.pairs)
        numbers = [task.stage.index, self.rule.period(task.round), task.client_id]
        own, method.generator = method.generator, torch_generator(self._seed, "bank", *numbers)
        for pair in range(self.rule.pairs):
            for chunk in torch.arange(len(images)).split(batch_size):
                found, cost = _hidden(method, images, chunk, book, kind)
                bank.macs += cost
                if not bank.views:
                    bank.views = self._tables(task, len(images), found)
                for rows, view in zip(bank.views, found, strict=True):
                    rows.write(pair * len(images) + int(chunk[0]), view)
        method.generator = own
        return bank

    def _tables(self, task: Task, images: int, found: Inputs) -> list[Rows]:
        shapes = [tuple(view.shape[1:]) for view in found]
        self.rule.check(task.stage, images, shapes)
        return [Rows(self.rule.pairs * images, shape, self.rule.bits, self.rule.path) for shape in shapes]


def _hidden(method: Method, images: ImageSet, chunk: Tensor, book: CostBook, kind: str) -> tuple[Inputs, int]:
    """The prefix's outputs for newly drawn views of some images, and the multiply-accumulates they cost."""
    device = next(method.backbone.parameters()).device
    inputs = method.inputs(images.gather(chunk).to(device), images.labels[chunk].to(device))
    hidden: list[Tensor] = []
    cost = book.step((kind, len(chunk)), method, lambda: hidden.extend(method.hidden(inputs)))
    return tuple(each for each in hidden if each.is_floating_point()), cost.macs
