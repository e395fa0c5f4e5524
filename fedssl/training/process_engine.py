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
        at_once = self._local.clients_at_once
        for start in range(0, len(cohort.participants), self._world_size * at_once):
            # Every rank makes the tasks of all ranks: a task updates the server's books on its client's frozen parts
            # and traffic, and all replicas must keep the same books.
            block = cohort.participants[start : start + self._world_size * at_once]
            tasks = [server.make_task(client) for client in block]
            own = iter(self._train(tasks[self._rank * at_once : (self._rank + 1) * at_once]))
            # With one client a rank in between, its result may lie in the resident model until it has been taken.
            for place in range(len(tasks)):
                trainer = place // at_once
                yield self._share(next(own) if trainer == self._rank else None, trainer)

    @property
    def _device(self) -> torch.device:
        return next(self._local.model.method.parameters()).device

    def _train(self, tasks: Sequence[Task]) -> list[Result | Failure]:
        """Train the clients of this rank, together where they can be, and return their answers in the tasks' order."""
        if self._local.clients_at_once == 1:
            return [answer for task in tasks for answer in self._attempt([task])]
        sizes = [len(images) for images in self._clients]
        answers = [answer for group in self._local.groups(tasks, sizes) for answer in self._attempt(group)]
        return sorted(answers, key=lambda answer: answer.client_id)

    def _attempt(self, tasks: Sequence[Task]) -> Sequence[Result | Failure]:
        """Train a group of clients; an error counts as the failure of its client, as it would on a network.

        Broken invariants of our own still end the run. So does a GPU that no longer computes, since every later client
        would fail on it.
        """
        images = [self._clients[task.client_id] for task in tasks]
        try:
            if self._local.clients_at_once == 1:
                return [self._local(tasks[0], images[0])]
            return self._local.together(tasks, images)
        except AssertionError:
            raise
        except Exception as error:
            if not _works(self._device):
                raise
            if len(tasks) > 1:
                # So that only the client at fault fails.
                logger.warning("%d clients together failed (%s); they train one by one", len(tasks), error)
                return [answer for task in tasks for answer in self._attempt([task])]
            logger.info("client %d failed", tasks[0].client_id, exc_info=True)
            return [Failure(tasks[0].client_id, f"{type(error).__name__}: {error}")]

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
