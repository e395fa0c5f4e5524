"""Client stages: the part of a stage that each client holds and trains."""

from __future__ import annotations

from collections.abc import Sequence

from fedssl.protocol.parts import SplitModel
from fedssl.server.participation import Participation
from fedssl.utils.seeding import numpy_generator
from layerwise import Scheme, Stage


def typical_choices(scheme: Scheme, stage: Stage, seed: int) -> list[Stage]:
    """Stage variants that a client may train, largest first; devices are compared with their cost.

    Depth dropout is drawn once with a fixed seed; all draws cost the same.
    """
    return [scheme.for_client(choice, numpy_generator(seed, "layers")) for choice in scheme.choices(stage)]


def client_stage(scheme: Scheme, stage: Stage, share: Stage, client: int, round_: int, seed: int) -> Stage:
    """Stage that a client holds and trains in a round: its variant without the layers that depth dropout removes.

    Args:
        scheme: Scheme that offers variants and drops layers.
        stage: Stage of the server.
        share: Variant from ``typical_choices`` that the client's device can train.
        client: Id of the client.
        round_: Communication round, from 0.
        seed: Seed of the run.
    """
    # The share has already lost the layers of the fixed draw, so look up the whole variant and draw for this round.
    choice = scheme.choices(stage)[typical_choices(scheme, stage, seed).index(share)]
    return scheme.for_client(choice, numpy_generator(seed, "layers", round_, client))


def check_untied(
    model: SplitModel, scheme: Scheme, stages: Sequence[Stage], participation: Participation, seed: int
) -> None:
    """Refuse a head that shares a weight with a part which some client freezes: training the head would change it.

    Raises:
        ValueError: A client would freeze a tied weight.
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
