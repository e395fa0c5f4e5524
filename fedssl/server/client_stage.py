"""Client stages: the part of a stage that each client holds and trains."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fedssl.protocol.parts import PartitionedModel
from fedssl.utils.seeding import numpy_generator
from layerwise import Scheme, Stage


class StageOptions:
    """Variants of one stage that clients may train, largest first; a client's variant is known by its position.

    Args:
        scheme: Scheme that offers the variants and drops layers.
        stage: Stage of the server.
        seed: Seed of the run.

    Attributes:
        priced: The variants after depth dropout was drawn once with a fixed seed. All draws cost the same, so devices
            are compared with the cost of these.
    """

    def __init__(self, scheme: Scheme, stage: Stage, seed: int) -> None:
        self._scheme, self._seed = scheme, seed
        self._variants = scheme.choices(stage)
        self.priced = [scheme.for_client(variant, numpy_generator(seed, "layers")) for variant in self._variants]

    def draw(self, variant: int, client: int, round_: int) -> Stage:
        """Return what a client holds and trains in a round: a variant without the layers that depth dropout removes."""
        # The client among the numbers, so that the layers that one leaves out are trained by others in the same round.
        rng = numpy_generator(self._seed, "layers", round_, client)
        return self._scheme.for_client(self._variants[variant], rng, round_)


def check_untied(model: PartitionedModel, stages: Iterable[Sequence[Stage]]) -> None:
    """Refuse a head that shares a weight with a part which some client freezes: training the head would change it.

    Args:
        model: The global model.
        stages: For each stage of the run, what each client trains of it.

    Raises:
        ValueError: A client would freeze a tied weight.
    """
    tied = model.tied()
    for own in stages if tied else []:
        for client, stage in enumerate(own):
            for part in stage.frozen_parts():
                if part in tied:
                    raise ValueError(
                        f"{tied[part]} is tied to {part}, which client {client} freezes in stage {stage.index + 1}: "
                        "untie them, or train all layers"
                    )
