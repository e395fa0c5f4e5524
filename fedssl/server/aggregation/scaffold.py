"""SCAFFOLD: control variates keep clients from drifting towards their own data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Optimizer

from fedssl.protocol.messages import Tensors
from fedssl.server.aggregation.fednova import path_length
from fedssl.server.aggregation.means import WeightedMean
from fedssl.server.aggregation.rule import Update, difference_to, moved_by_gradients
from fedssl.server.participation import Participation


class SCAFFOLD(WeightedMean):
    """Stochastic controlled averaging, option II (Karimireddy et al. 2020, arXiv 1910.06378, algorithm 1).

    A client's control variate c_i is the mean gradient of its last local steps, and c is the mean over all N clients,
    zero for those that have not taken part yet. From the global x, a client takes K steps along g(y) - c_i + c to y_i:

    - c_i+ = c_i - c + (x - y_i) / (K lr)
    - x+ = mean over the round's clients of y_i, the step of the server optimizer as for any rule
    - c+ = c + 1/N sum over them of (c_i+ - c_i)

    The server computes and keeps all c_i: everything in c_i+ is known to it anyway. So a device receives the one
    tensor c - c_i with each parameter, holds nothing between rounds, and sends no more than in FedAvg (in the paper it
    receives c and sends c_i+ - c_i). c stays the mean of the c_i also if an update is lost. The price is memory of the
    server, and of its checkpoints: the trained parameters of the stage once for each client, on the CPU.

    Clients must use SGD, whose changes of the weights are sums of gradients. Our reading: with momentum, K is the sum
    of the weights with which gradients add up, see :func:`fedssl.server.aggregation.fednova.path_length`; lr is that of
    the round; weight decay and FedProx's term count as gradients, and clipped gradients as what is left of them; every
    tensor has variates of its own, which are forgotten when a stage no longer trains it. Clients weigh the same, as in
    the paper. Numbers of steps are the clients' own claims.
    """

    corrects = True
    reads_steps = True

    def begin(self, participation: Participation, rounds: int) -> None:
        """Start a run: all variates are zero."""
        self._num_clients = participation.num_clients
        self._common: Tensors = {}
        self._own: dict[int, Tensors] = {}

    def check_optimizer(self, optimizer: Optimizer) -> None:
        """Refuse other optimizers than SGD, and note its learning rate and momentum.

        Raises:
            ValueError: The optimizer is not SGD, or has a momentum of another kind.
        """
        settings = optimizer.defaults
        if type(optimizer) is not SGD or settings["nesterov"] or settings["dampening"] or settings["maximize"]:
            raise ValueError(
                f"SCAFFOLD needs clients with SGD, plain or with momentum, got {type(optimizer).__name__}: "
                "set --model.optimizer=torch.optim.SGD and its lr, or choose another --model.aggregation"
            )
        self._lr, self._momentum = float(settings["lr"]), float(settings["momentum"])

    def correction(self, client_id: int, parameters: Mapping[str, Tensor]) -> Tensors:
        """Return c - c_i."""
        own = self._own.get(client_id, {})
        return {key: variate_of(self._common, key, t) - variate_of(own, key, t) for key, t in parameters.items()}

    def begin_round(self, reference: Tensors) -> None:
        super().begin_round(reference)
        self._drifts: Tensors = {}
        self._common = only_of(reference, self._common)
        self._own = {client: only_of(reference, own) for client, own in self._own.items()}

    def add(self, update: Update) -> None:
        super().add(replace(update, num_images=1))
        own = self._own.setdefault(update.client_id, {})
        length = self._lr * update.lr_factor * path_length(update.steps, self._momentum)
        for key, tensor in update.tensors.items():
            if moved_by_gradients(key):
                gradient = -difference_to(self._reference[key], tensor).cpu() / length
                # c itself moves in ``finish``, because tasks of this round may still be made.
                drift = gradient - variate_of(self._common, key, gradient)
                own[key] = variate_of(own, key, gradient) + drift
                self._drifts[key] = variate_of(self._drifts, key, gradient) + drift

    def finish(self) -> Tensors:
        for key, drift in self._drifts.items():
            self._common[key] = variate_of(self._common, key, drift) + drift / self._num_clients
        return super().finish()

    def state_dict(self) -> dict[str, Any]:
        """Return c and all c_i; each c_i tells of its client's data."""
        return {"common": self._common, "own": self._own}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore c and all c_i."""
        self._common = dict(state["common"])
        self._own = {client: dict(own) for client, own in state["own"].items()}


def variate_of(variates: Tensors, key: str, like: Tensor) -> Tensor:
    """Return the variate of a tensor; zero if it has none yet."""
    return variates[key] if key in variates else torch.zeros(like.shape)


def only_of(reference: Tensors, variates: Tensors) -> Tensors:
    """Return the variates of the tensors that are still trained."""
    return {key: variate for key, variate in variates.items() if key in reference}
