"""One depth for the whole fleet: the one at which devices train the most layers (CAFF, arXiv 2411.07826)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedssl.devices.fleet import Fleet
from layerwise import Scheme, Stage


def choose_depth(trained: Mapping[int, Sequence[int]]) -> int:
    """The depth l with the largest average number of trained layers t_c(l).

    Devices that fit at no depth are left aside. A depth at which another device cannot take part is discarded. Of
    equal averages the larger depth wins (our reading; the paper does not say).

    Args:
        trained: For every depth the t_c of all devices, in the same order; 0 where nothing fits.

    Raises:
        ValueError: No device fits at any depth, or every depth leaves out some device that fits at another.
    """
    able = [any(counts) for counts in zip(*trained.values(), strict=True)]
    if not any(able):
        raise ValueError(f"no device can train even the last layer at any of the depths {sorted(trained)}")
    kept = {
        depth: [count for count, fits in zip(counts, able, strict=True) if fits] for depth, counts in trained.items()
    }
    averages = {depth: (sum(counts), depth) for depth, counts in kept.items() if all(counts)}
    if not averages:
        raise ValueError(f"each of the depths {sorted(trained)} leaves out a device that fits at another one")
    return max(averages, key=lambda depth: averages[depth])


def trained_layers(scheme: Scheme, depths: Sequence[int], rounds: int, fleet: Fleet) -> dict[int, list[int]]:
    """For every depth the number of layers that each device trains; 0 where nothing fits."""
    found: dict[int, list[int]] = {}
    for depth in depths:
        choices = scheme.choices(scheme.stages(depth, rounds)[-1])
        shares = [fleet.largest(client, choices) for client in range(len(fleet.profiles))]
        found[depth] = [len(share.trained) if share else 0 for share in shares]
    return found


def fleet_stages(scheme: Scheme, num_blocks: int, rounds: int, fleet: Fleet | None) -> list[Stage]:
    """The stages of a run at the depth that suits the fleet best, of those that the scheme offers.

    Args:
        scheme: Offers depths and cuts the run into stages.
        num_blocks: Blocks of the full encoder.
        rounds: Communication rounds of the run.
        fleet: The clients' devices; without them the largest depth is taken.

    Raises:
        ValueError: The scheme does not fit the encoder or the rounds, or nothing fits any device; the message has what
            is missing.
    """
    depths = scheme.depths(num_blocks)
    if not fleet or len(depths) == 1:
        return scheme.stages(depths[-1], rounds)
    trained = trained_layers(scheme, depths, rounds, fleet)
    if not any(map(any, trained.values())):
        fleet.check([scheme.choices(scheme.stages(depths[0], rounds)[-1])[-1]])
    return scheme.stages(choose_depth(trained), rounds)
