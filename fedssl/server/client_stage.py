"""What each client holds and trains of a stage."""

from __future__ import annotations

from collections.abc import Sequence

from fedssl.protocol.parts import SplitModel
from fedssl.server.participation import Participation
from fedssl.utils.seeding import numpy_generator
from layerwise import Scheme, Stage


def typical_choices(scheme: Scheme, stage: Stage, seed: int) -> list[Stage]:
    """A scheme's choices of a stage as some client gets them, the most first; they tell what each costs."""
    return [scheme.for_client(choice, numpy_generator(seed, "layers")) for choice in scheme.choices(stage)]


def client_stage(scheme: Scheme, stage: Stage, share: Stage, client: int, round_: int, seed: int) -> Stage:
    """What a client holds and trains of a stage in a round: its share without the layers that its draw leaves out.

    Args:
        scheme: Offers choices and drops layers.
        stage: What the server trains.
        share: That of :func:`typical_choices` which the client's device can train.
        client: Its id.
        round_: Communication round, from 0.
        seed: Of the run.
    """
    choice = scheme.choices(stage)[typical_choices(scheme, stage, seed).index(share)]
    return scheme.for_client(choice, numpy_generator(seed, "layers", round_, client))


def check_untied(
    model: SplitModel, scheme: Scheme, stages: Sequence[Stage], participation: Participation, seed: int
) -> None:
    """Refuses a head that shares a weight with a part which some client freezes: training the head would change it.

    Raises:
        ValueError: There are such tied weights.
    """
    tied = model.tied()
    for stage in stages if tied else []:
        choices = typical_choices(scheme, stage, seed)
        for client in range(participation.num_clients):
            share = participation.share(client, choices)
            for part in share.frozen_parts():
                if part in tied:
                    raise ValueError(
                        f"{tied[part]} is tied to {part}, which client {client} freezes in stage {stage.index + 1}: "
                        "untie them, or train all layers"
                    )
