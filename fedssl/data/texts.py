"""Lightning data module of a text, divided among clients."""

from __future__ import annotations

from torch.utils.data import DataLoader

from fedssl.data.clients import ClientData, divide, in_order
from fedssl.data.datasets import TextSet, load_text, speeches
from fedssl.data.datasets.texts import VOCABULARY
from fedssl.data.partition import Partitioner, WholeClasses
from fedssl.utils.seeding import numpy_generator, run_seed
from ssl_methods import check_at_least


class FederatedText(ClientData):
    """Pieces of one text, divided among clients by speaker.

    The end of each speaker's text is held out: training pieces come first, then validation, then test. So these are
    the same for every number of clients and every partition. Ends too short for a piece are dropped.

    Args:
        dataset: Name of the text: ``toy_dialogue``, which needs no download; ``tiny_shakespeare``; or a file ``*.txt``
            below the root, in which lines ``NAME:`` begin speeches (a text without them has a single speaker).
        root: Folder of all data sets.
        context: T, the context length in characters.
        clients: Number of clients.
        partition: Rule that divides the pieces; their classes are the speakers. ``WholeClasses`` gives each speaker
            to one client, ``IID`` deals out the pieces in equal shares.
        validation_fraction: Share of each speaker's pieces that is evaluated during training.
        test_fraction: Share of each speaker's pieces for the final evaluation.
        eval_batch_size: Pieces in a batch of the evaluation.
        download: Allow the download of an absent text.
        seed: Seed of the division; ``None`` takes the run's.

    Attributes:
        pool: All pieces to train on, after ``setup``.
        validation: Pieces evaluated during training, after ``setup``.
        eval_test: Test pieces, the held-out ends, after ``setup``.

    Raises:
        ValueError: A setting is out of its range; in ``setup``, the text is too short for it.
    """

    pool: TextSet
    validation: TextSet
    eval_test: TextSet

    def __init__(
        self,
        dataset: str = "toy_dialogue",
        root: str = "data",
        context: int = 128,
        clients: int = 8,
        partition: Partitioner = WholeClasses(),  # noqa: B008 (immutable)
        validation_fraction: float = 0.1,
        test_fraction: float = 0.1,
        eval_batch_size: int = 64,
        download: bool = True,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        check_at_least(1, context=context, clients=clients, eval_batch_size=eval_batch_size)
        self.dataset, self.root, self.context = dataset, root, context
        self.num_clients, self.partition = clients, partition
        self.fractions = validation_fraction, test_fraction
        self.eval_batch_size, self.download = eval_batch_size, download
        self.seed = run_seed(seed)

    def setup(self, stage: str) -> None:
        """Load, cut and divide the text."""
        if "eval_test" not in vars(self):
            text = speeches(load_text(self.dataset, self.root, self.download))
            splits = TextSet(self.dataset, text, self.context).tails(*self.fractions)
            self.pool, self.validation, self.eval_test = splits
        if stage == "fit" and "datasets" not in vars(self):
            rng = numpy_generator(self.seed, "partition")
            self.datasets = divide(self.pool, self.partition, self.num_clients, rng)

    @property
    def vocabulary(self) -> int:
        """Number of different characters."""
        return VOCABULARY

    def val_dataloader(self) -> DataLoader:
        """Return a loader of the validation pieces."""
        return in_order(self.validation, self.eval_batch_size)

    def test_dataloader(self) -> DataLoader:
        """Return a loader of the test pieces."""
        return in_order(self.eval_test, self.eval_batch_size)
