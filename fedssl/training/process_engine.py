"""Engine of this run's own processes: each process (rank) trains its part of a round's cohort.

Every rank holds a replica of the server. Every result goes to all ranks, one at a time and in ascending order of client
id. Each replica therefore adds the same numbers in the same order as a single process would, and all of them stay equal
bit for bit. Within a round, ranks exchange results and nothing else.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from fedssl.client.local_update import LocalUpdate
from fedssl.data.datasets import SampleSet
from fedssl.federation.federation import Engine
from fedssl.protocol.messages import Failure, Result, Task, Tensors, content_id, flatten
from fedssl.server.participation import Cohort
from fedssl.server.server import Server

logger = logging.getLogger(__name__)


class RankLostError(RuntimeError):
    """Another process of the run has ended, so that collective operations fail."""


class ProcessEngine(Engine):
    """Engine that trains clients in the processes of the default process group; by default, in this process alone.

    The state that clients keep between rounds goes to all ranks too, so any rank can train any client.

    Args:
        local: Local update of this rank, with its resident model.
        clients: Images of each client.
        rank: Rank of this process, from 0.
        world_size: Number of processes.
    """

    def __init__(self, local: LocalUpdate, clients: Sequence[SampleSet], rank: int = 0, world_size: int = 1) -> None:
        self._local = local
        self._clients = clients
        self._rank = rank
        self._world_size = world_size
        self._checked = world_size == 1

    def connect(self, server: Server) -> None:
        """Synchronise the replicated servers; afterwards they need no communication of their own.

        Raises:
            ValueError: This rank's server differs from the first one's in configuration, data or code.
            RankLostError: Another rank has ended.
        """
        if not self._checked:
            # A private rule draws its key from the operating system, another one in each process.
            server.aggregation.load_state_dict(self._broadcast(server.aggregation.state_dict(), 0))
            self._check(server)
            self._checked = True
        # Every rank calibrates its own replica. GPU kernels may differ in the last bit, and the replicas would drift
        # apart; so all continue from the weights of rank 0.
        if self._world_size > 1 and server.calibration:
            first = self._broadcast(_weights(server), 0)
            for name, tensor in _weights(server).items():
                tensor.copy_(first[name])

    def train(self, server: Server, cohort: Cohort) -> Iterator[Result | Failure]:
        """Train as many clients at a time as there are ranks, and yield all results on every rank.

        Raises:
            RankLostError: Another rank has ended.
        """
        for start in range(0, len(cohort.participants), self._world_size):
            # Every rank makes the tasks of all ranks: a task updates the server's books on its client's frozen parts
            # and traffic, and all replicas must keep the same books.
            tasks = [server.make_task(c) for c in cohort.participants[start : start + self._world_size]]
            mine = tasks[self._rank] if self._rank < len(tasks) else None
            own = self._train(mine) if mine else None
            # At most one client a rank in between: a result may lie in the resident model until it has been taken.
            for trainer in range(len(tasks)):
                yield self._share(own, trainer)

    @property
    def _device(self) -> torch.device:
        return next(self._local.model.method.parameters()).device

    def _train(self, task: Task) -> Result | Failure:
        """Train one client; an error counts as this client's failure, as it would on a network.

        Broken invariants of our own still end the run. So does a GPU that no longer computes, since every later client
        would fail on it.
        """
        try:
            return self._local(task, self._clients[task.client_id])
        except AssertionError:
            raise
        except Exception as error:
            if not _works(self._device):
                raise
            logger.info("client %d failed", task.client_id, exc_info=True)
            return Failure(task.client_id, f"{type(error).__name__}: {error}")

    def _share(self, own: Result | Failure | None, trainer: int) -> Result | Failure:
        """Broadcast a client's result from the rank that trained it, and keep the client's state here too."""
        if self._world_size == 1:
            assert own is not None
            return own
        state = self._local.client_states.get(own.client_id) if own else None
        result, state = self._broadcast((own, state), trainer)
        if state:
            self._local.client_states[result.client_id] = state
        return result

    def _check(self, server: Server) -> None:
        own = server.settings() | self._local.settings() | {"round": server.round}
        own |= {"images of the clients": [len(images) for images in self._clients]}
        own |= {"weights": content_id(_weights(server))}
        first = self._broadcast(own, 0)
        differing = ", ".join(key for key in own if own[key] != first.get(key))
        if differing:
            raise ValueError(
                f"process {self._rank} differs from process 0 in {differing}: all need the same configuration, data, "
                "checkpoint and versions"
            )

    def _broadcast(self, message: Any, source: int) -> Any:
        """Broadcast a message; its tensors arrive on the CPU, or on this rank's device if they were on the source's."""
        stream = io.BytesIO()
        if self._rank == source:
            torch.save(message, stream)
        # Packed here and not by the collective's own pickle, which could not choose the device on arrival.
        packed = [stream.getvalue()]
        with lost_ranks():
            dist.broadcast_object_list(packed, source, device=self._device)
        if self._rank == source:
            return message
        # Trusted (``weights_only=False``): the bytes come from another process of this run.
        return torch.load(io.BytesIO(packed[0]), map_location=self._own_device, weights_only=False)

    def _own_device(self, storage: torch.UntypedStorage, place: str) -> torch.UntypedStorage:
        """Keep the CPU's tensors there; PyTorch would put others on the GPU of the rank that sent them."""
        return storage if place == "cpu" else storage.to(device=self._device)


@contextmanager
def lost_ranks() -> Iterator[None]:
    """Report a failed collective operation as the loss of another process, which is its cause."""
    try:
        yield
    except RuntimeError as error:
        raise RankLostError(
            "another process of this run has ended: see what it said; --ckpt_path last goes on"
        ) from error


def _works(device: torch.device) -> bool:
    """Test if a device still computes: unlike lack of memory, an error in a CUDA kernel makes all later calls fail."""
    try:
        # ``item`` waits for the device: kernels fail after their call has returned.
        torch.zeros(1, device=device).item()
    except RuntimeError:
        return False
    return True


def _weights(server: Server) -> Tensors:
    return flatten(server.model.read(server.model.parts))
