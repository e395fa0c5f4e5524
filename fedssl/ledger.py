"""What training cost each client so far."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from fedssl.messages import Failure, Result


@dataclass
class ClientCost:
    """Totals of one client.

    Args:
        rounds: Rounds whose result counted.
        down_bytes: Received from the server.
        up_bytes: Sent to the server.
        macs: Multiply-accumulates of local training.
        activation_bytes: Largest number of bytes kept for backward in one step.
    """

    rounds: int = 0
    down_bytes: int = 0
    up_bytes: int = 0
    macs: int = 0
    activation_bytes: int = 0


class Ledger:
    """Costs by client."""

    def __init__(self) -> None:
        self.clients: dict[int, ClientCost] = {}

    def sent(self, client_id: int, num_bytes: int) -> None:
        """Books bytes that went to a client."""
        self._of(client_id).down_bytes += num_bytes

    def lost(self, failure: Failure) -> None:
        """Books what a client computed in vain."""
        self._of(failure.client_id).macs += failure.macs

    def received(self, result: Result, num_bytes: int) -> None:
        """Books a client's result."""
        cost = self._of(result.client_id)
        cost.rounds += 1
        cost.up_bytes += num_bytes
        cost.macs += result.macs
        cost.activation_bytes = max(cost.activation_bytes, result.activation_bytes)

    def summary(self) -> dict[str, float]:
        """Mean over clients and largest client of each cost."""
        summary: dict[str, float] = {}
        for name in ("down_bytes", "up_bytes", "macs"):
            values = [getattr(cost, name) for cost in self.clients.values()] or [0]
            summary[f"{name}_per_client"] = sum(values) / len(values)
            summary[f"{name}_max_client"] = max(values)
        peaks = [cost.activation_bytes for cost in self.clients.values()]
        return summary | {"peak_activation_bytes": max(peaks, default=0)}

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers by client."""
        return {str(client): asdict(cost) for client, cost in self.clients.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`."""
        self.clients = {int(client): ClientCost(**cost) for client, cost in state.items()}

    def _of(self, client_id: int) -> ClientCost:
        return self.clients.setdefault(client_id, ClientCost())
