"""Learning-rate schedule of the linear classifier and of fine-tuning."""

from math import cos, pi


def warmup_cosine(step: int, warmup_steps: int, total_steps: int) -> float:
    """Factor on the learning rate of a step: linear rise to 1, then half a cosine down towards 0.

    Source: Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017, one
        cycle;
    the warm-up of Goyal et al., "Accurate, Large Minibatch SGD", 2017. The first step has factor
    1 / warmup_steps, not 0.

    Args:
        step: Steps already taken, from 0.
        warmup_steps: Length of the warm-up, 0 for none.
        total_steps: Length of the training, warm-up included. From there on the factor is 0.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if step >= total_steps:
        return 0.0
    return 0.5 * (1.0 + cos(pi * (step - warmup_steps) / (total_steps - warmup_steps)))
