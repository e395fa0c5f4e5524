"""Yogi as a server optimizer, which torch does not have."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer


class Yogi(Optimizer):
    """FedYogi's server step (Reddi et al. 2021, arXiv 2003.00295, algorithm 2), along the clients' mean change d.

    - m+ = beta_1 m + (1 - beta_1) d
    - v+ = v - (1 - beta_2) d^2 sign(v - d^2), which grows as slowly as Adam's and falls no faster
    - x+ = x + lr m+ / (sqrt(v+) + eps)

    m starts at zero and v at eps^2, the smallest value that the paper allows; nothing is corrected for that bias, as
    ``torch.optim.Adam`` does. The paper's figures have betas of 0.9 and 0.99 and an eps of 1e-3, its tau.

    Args:
        params: Parameters of the global model.
        lr: Learning rate.
        betas: Decay rates of both moments, at least 0 and below 1.
        eps: tau, the degree of adaptivity: the smaller, the more alike are the steps of all weights.

    Raises:
        ValueError: A setting is out of its range.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-3,
    ) -> None:
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas must be two numbers of at least 0 and below 1, got {betas}")
        if not eps > 0:
            raise ValueError(f"eps must be above 0, got {eps}")
        super().__init__(params, {"lr": lr, "betas": tuple(betas), "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, group)
        return loss

    def _move(self, parameter: nn.Parameter, group: dict[str, Any]) -> None:
        (first, second), eps = group["betas"], group["eps"]
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if not state:
            state["mean"] = torch.zeros_like(parameter)
            state["spread"] = torch.full_like(parameter, eps**2)
        square = gradient.square()
        state["mean"].lerp_(gradient, 1 - first)
        state["spread"].sub_((1 - second) * square * (state["spread"] - square).sign())
        parameter.sub_(group["lr"] * state["mean"] / (state["spread"].sqrt() + eps))
