"""FedDyn: clients minimise losses whose common minimum is that of the mean loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from fedssl.protocol.messages import Tensors
from fedssl.server.aggregation.means import WeightedMean
from fedssl.server.aggregation.rule import Update, difference_to, moved_by_gradients
from fedssl.server.aggregation.scaffold import only_of, variate_of
from fedssl.server.participation import Participation
from ssl_methods import check_at_least

STRENGTHS = (1e-6, 1e6)
"""Allowed alpha: the global step is divided by it."""


class FedDyn(WeightedMean):
    """Dynamic regularisation (Acar et al. 2021, arXiv 2111.04263, algorithm 1).

    A client k has a gradient g_k, at first zero, and minimises its loss - <g_k, w> + alpha / 2 |w - x|^2 from the
    global x; m is the number of all clients. After its w_k:

    - g_k+ = g_k - alpha (w_k - x)
    - h+ = h - alpha / m * sum over the round's clients of (w_k - x)
    - x+ = mean over them of w_k - h+ / alpha, the step of the server optimizer as for any rule

    The last term of the loss is FedProx's, with ``--model.proximal`` equal to alpha. The server computes and keeps all
    g_k: everything in them is known to it anyway. So a device receives -g_k with its task and keeps nothing between
    rounds, while the server's memory and checkpoints hold one model for each client that took part.

    Our reading: any clients' optimizer will do, as it is handed the gradient of the whole loss; g_k and h of layers
    that are trained no more are forgotten; a tensor that no client gave stays as it is; batch norm's statistics and a
    method's state have the plain mean.

    Args:
        alpha: Strength of the regularisation; clients need ``--model.proximal`` equal to it.

    Raises:
        ValueError: alpha is out of its range.
    """

    corrects = True

    def __init__(self, alpha: float = 0.1) -> None:
        check_at_least(*STRENGTHS, alpha=alpha)
        self.alpha = self.needs_proximal = alpha

    def begin(self, participation: Participation, rounds: int) -> None:
        """Forget all gradients."""
        self._num_clients = participation.num_clients
        self._common: Tensors = {}
        self._own: dict[int, Tensors] = {}

    def correction(self, client_id: int, parameters: Mapping[str, Tensor]) -> Tensors:
        """Return -g_k."""
        own = self._own.get(client_id, {})
        return {key: -variate_of(own, key, tensor) for key, tensor in parameters.items()}

    def begin_round(self, reference: Tensors) -> None:
        super().begin_round(reference)
        self._common = only_of(reference, self._common)
        self._own = {client: only_of(reference, own) for client, own in self._own.items()}

    def add(self, update: Update) -> None:
        super().add(replace(update, num_images=1))
        own = self._own.setdefault(update.client_id, {})
        for key, tensor in update.tensors.items():
            if moved_by_gradients(key):
                change = self.alpha * difference_to(self._reference[key], tensor).cpu()
                own[key] = variate_of(own, key, change) - change
                self._common[key] = variate_of(self._common, key, change) - change / self._num_clients

    def finish(self) -> Tensors:
        means = super().finish()
        ahead = {key: common / self.alpha for key, common in self._common.items() if key in self._sums}
        return means | {key: (means[key] - step.to(means[key].device)).to(means[key]) for key, step in ahead.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return h and all g_k; each g_k tells of its client's data."""
        return {"common": self._common, "own": self._own}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore h and all g_k."""
        self._common = dict(state["common"])
        self._own = {client: dict(own) for client, own in state["own"].items()}
