"""FedNova: clients that take more local steps do not pull the average towards themselves."""

from __future__ import annotations

from torch import Tensor

from fedssl.protocol.messages import Tensors
from fedssl.server.aggregation.rule import Aggregation, Update, difference_to, moved_by_gradients


class FedNova(Aggregation):
    """Normalised averaging (Wang et al. 2020, arXiv 2007.07481).

    w + tau_eff * sum_i p_i (w_i - w) / |a_i|, with p_i a client's share of the images and |a_i| the sum of the weights
    with which its optimizer adds up the gradients of its tau_i steps:

    - SGD: tau_i, and tau_eff = sum_i p_i |a_i|. With equally many steps it is the weighted mean.
    - SGD with momentum rho: (tau_i - rho (1 - rho^tau_i) / (1 - rho)) / (1 - rho), tau_eff likewise.
    - SGD with FedProx's term, eta mu = alpha: (1 - (1 - alpha)^tau_i) / alpha, and tau_eff = sum_i p_i tau_i, as in the
      authors' code. The paper treats momentum and this term apart, so both at once are refused.

    These are exact without weight decay or Nesterov momentum, because clients start every round with a fresh optimizer
    and keep its learning rate for the round. Our reading is everything else. Adaptive optimizers count as SGD, as if
    their steps were equally long. Where clients give different layers, shares and tau_eff are those of a layer's
    givers. What no gradient moves, batch norm's statistics and a method's state, has the plain weighted mean: a step of
    it may be longer than any client's, and a variance must not fall below zero. Clients' numbers of steps are their own
    claims.

    Args:
        momentum: rho of the clients' optimizer.
        proximal: alpha, the optimizer's learning rate times ``--model.proximal``; the round's factor of the rate
            multiplies it.

    Raises:
        ValueError: A number is out of its range, or both are set.
    """

    reads_steps = True

    def __init__(self, momentum: float = 0.0, proximal: float = 0.0) -> None:
        if not 0 <= momentum < 1 or not 0 <= proximal < 1:
            raise ValueError(f"momentum and proximal must be at least 0 and below 1, got {momentum} and {proximal}")
        if momentum and proximal:
            raise ValueError(f"momentum {momentum} and proximal {proximal} exclude each other: set one of them to 0")
        self.momentum, self.proximal = momentum, proximal

    def begin_round(self, reference: Tensors) -> None:
        self._reference = reference
        self._sums: dict[str, Tensor] = {}
        self._images: dict[str, int] = {}
        self._steps: dict[str, float] = {}

    def add(self, update: Update) -> None:
        length = path_length(update.steps, self.momentum, self.proximal * update.lr_factor)
        effective = update.steps if self.proximal else length
        for key, tensor in update.tensors.items():
            divisor, steps = (length, effective) if moved_by_gradients(key) else (1.0, 1.0)
            change = difference_to(self._reference[key], tensor).mul_(update.num_images / divisor)
            self._sums[key] = self._sums[key].add_(change) if key in self._sums else change
            self._images[key] = self._images.get(key, 0) + update.num_images
            self._steps[key] = self._steps.get(key, 0.0) + update.num_images * steps

    def finish(self) -> Tensors:
        return self._reference | {key: self._step(key, total) for key, total in self._sums.items()}

    def _step(self, key: str, total: Tensor) -> Tensor:
        reference, images = self._reference[key], self._images[key]
        effective = self._steps[key] / images
        return (reference + total * (effective / images)).to(reference.dtype)


def path_length(steps: int, momentum: float = 0.0, proximal: float = 0.0) -> float:
    """Sum the weights |a| with which gradients of one size add up over so many steps; at most one is above 0."""
    if momentum:
        return (steps - momentum * (1 - momentum**steps) / (1 - momentum)) / (1 - momentum)
    if proximal:
        return (1 - (1 - proximal) ** steps) / proximal
    return float(steps)
