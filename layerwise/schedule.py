"""Numbers of blocks and rounds of each stage."""

from __future__ import annotations


def blocks_of_stages(blocks_per_stage: int | list[int], num_blocks: int) -> list[int]:
    """Return the number of blocks that each stage adds.

    Raises:
        ValueError: The numbers are not positive or do not add up to ``num_blocks``.
    """
    if isinstance(blocks_per_stage, list):
        sizes = blocks_per_stage
        if len(sizes) > num_blocks:
            raise ValueError(f"{len(sizes)} stages are more than the encoder's {num_blocks} blocks")
        if any(size < 1 for size in sizes) or sum(sizes) != num_blocks:
            raise ValueError(
                f"blocks_per_stage {sizes} must be positive and add up to the encoder's {num_blocks} blocks"
            )
        return sizes
    if blocks_per_stage < 1 or num_blocks % blocks_per_stage:
        divisors = [n for n in range(1, num_blocks + 1) if num_blocks % n == 0]
        raise ValueError(
            f"blocks_per_stage {blocks_per_stage} does not divide the encoder's {num_blocks} blocks; "
            f"allowed: {divisors} or a list that sums to {num_blocks}"
        )
    return [blocks_per_stage] * (num_blocks // blocks_per_stage)


def rounds_of_stages(
    rounds_per_stage: list[int] | None, num_stages: int, rounds: int, warm_up: int = 0, long_last: bool = False
) -> list[int]:
    """Return the rounds of each stage, without its warm-up rounds.

    Args:
        rounds_per_stage: Explicit rounds, which are only checked; ``None`` shares the rounds.
        num_stages: S, the number of stages.
        rounds: Rounds of the run.
        warm_up: Warm-up rounds among them, over all stages. The other T are shared.
        long_last: T / 2S for every stage but the last, which gets the remaining T (S + 1) / 2S (ProgFed); otherwise
            every stage gets T / S.

    Raises:
        ValueError: The list has the wrong length or sum, or the rounds cannot be shared in this way.
    """
    check_rounds(rounds)
    left = rounds - warm_up
    besides = f", besides {warm_up} warm-up rounds" if warm_up else ""
    if rounds_per_stage is None:
        return _share(num_stages, rounds, warm_up, long_last)
    if len(rounds_per_stage) != num_stages:
        raise ValueError(f"rounds_per_stage has {len(rounds_per_stage)} entries for {num_stages} stages")
    if any(n < 1 for n in rounds_per_stage) or sum(rounds_per_stage) != left:
        raise ValueError(f"rounds_per_stage {rounds_per_stage} must be positive and add up to rounds {left}{besides}")
    return rounds_per_stage


def check_rounds(rounds: int) -> None:
    """Raise ValueError for a run without rounds."""
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")


def _share(num_stages: int, rounds: int, warm_up: int, long_last: bool) -> list[int]:
    # With a long last stage one share is T / 2S: every stage but the last lasts one, the last S + 1.
    shares = 2 * num_stages if long_last else num_stages
    share, rest = divmod(rounds - warm_up, shares)
    if rest or share < 1:
        how = "with a long last stage" if long_last else "equally"
        besides = f" and {warm_up} warm-up rounds" if warm_up else ""
        near = sorted({shares * n + warm_up for n in (max(share, 1), max(share, 0) + 1)})
        raise ValueError(
            f"rounds {rounds} cannot be shared {how} by {num_stages} stages; use a multiple of {shares}{besides} "
            f"({' or '.join(map(str, near))}) or list them in rounds_per_stage"
        )
    return [share] * (num_stages - 1) + [rounds - warm_up - share * (num_stages - 1)]
