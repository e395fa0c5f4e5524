"""Choice of one network for the fleet: the one of which devices train the most layers (CAFF, arXiv 2411.07826)."""

from __future__ import annotations

from collections.abc import Sequence

from fedssl.devices.fleet import Fleet
from layerwise import Scheme, Stage

Variants = list[list[Stage]]


def choose_variant(extents: Sequence[Sequence[int]]) -> int:
    """Return the index of the variant, such as a depth l, with the largest average number of trained layers t_c(l).

    Devices that fit no variant are ignored. A variant that excludes any other device is discarded. Of equal averages
    the later variant, which is the larger, wins (our reading; the paper does not say).

    Args:
        extents: Trained layers t_c of all devices for every variant, in the same order; 0 where nothing fits.

    Raises:
        ValueError: No device fits any variant, or every variant excludes some device that fits another.
    """
    able = [any(counts) for counts in zip(*extents, strict=True)]
    if not any(able):
        raise ValueError(f"no device can train even the least of {len(extents)} depths or ranks")
    kept = [[count for count, fits in zip(counts, able, strict=True) if fits] for counts in extents]
    # Sums rank as averages would: every variant counts the same devices.
    averages = {index: (sum(counts), index) for index, counts in enumerate(kept) if all(counts)}
    if not averages:
        raise ValueError(f"each of {len(extents)} depths or ranks leaves out a device that another one fits")
    return max(averages, key=lambda index: averages[index])


def device_extents(scheme: Scheme, variants: Variants, fleet: Fleet) -> list[list[int]]:
    """Return for every variant how much each device trains of its last stage; 0 where nothing fits."""
    found = []
    for stages in variants:
        choices = scheme.choices(stages[-1])
        chosen = [fleet.choose(client, choices) for client in range(len(fleet.profiles))]
        found.append([0 if each is None else choices[each].num_trained for each in chosen])
    return found


def fleet_stages(scheme: Scheme, num_blocks: int, rounds: int, fleet: Fleet | None) -> list[Stage]:
    """Return a run's stages in the variant that suits the fleet best, of those that the scheme offers.

    Args:
        scheme: Scheme that offers variants and cuts the run into stages.
        num_blocks: Number of blocks of the full encoder.
        rounds: Communication rounds of the run.
        fleet: Devices of the clients; ``None`` takes the largest variant.

    Raises:
        ValueError: The scheme does not fit the encoder or the rounds, or nothing fits any device; the message names the
            shortage.
    """
    variants = scheme.variants(num_blocks, rounds)
    if not fleet or len(variants) == 1:
        return variants[-1]
    extents = device_extents(scheme, variants, fleet)
    if not any(map(any, extents)):
        # Not even the least variant fits, so this raises, and with the shortage that ``choose_variant`` does not know.
        fleet.check([scheme.choices(variants[0][-1])[-1]])
    return variants[choose_variant(extents)]
