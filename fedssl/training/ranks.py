"""The clients of this machine's processes: each process (rank) trains its share of a round's cohort.

All ranks have the same server. Every result goes to all of them, one at a time and in ascending order of client id, so
that each makes of a round what one process would have made of it, bit for bit.
"""

from __future__ import annotations

import io
import logging
import pickle
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fedssl.client.local_update import LocalUpdate
from fedssl.data.datasets import SampleSet
from fedssl.protocol.messages import Failure, Result, Task, Tensors, content_id, flatten
from fedssl.server.engine import Engine
from fedssl.server.participation import Cohort
from fedssl.server.rounds import RoundReport
from fedssl.server.server import Server

logger = logging.getLogger(__name__)


class RankLostError(RuntimeError):
    """Another process of the run has ended."""


class Ranks(Engine):
    """Clients are trained by the processes of the default process group; by default there is one.

    What clients remember between rounds goes to all ranks too, so any rank can train any client.

    Args:
        local: This rank's resident client.
        clients: Images of each client.
        rank: This process, from 0.
        world_size: Number of processes.
    """

    def __init__(self, local: LocalUpdate, clients: Sequence[SampleSet], rank: int = 0, world_size: int = 1) -> None:
        self._local = local
        self._clients = clients
        self._rank = rank
        self._world_size = world_size
        self._checked = world_size == 1

    def gather(self, server: Server) -> None:
        """Brings all servers to the same state, from which they need no word of each other's.

        Raises:
            ValueError: Another configuration, data or code made this rank's server.
            RankLostError: Another rank has ended.
        """
        if not self._checked:
            # A secret of the rule's is drawn anew in every process.
            server.aggregation.load_state_dict(self._broadcast(server.aggregation.state_dict(), 0))
            self._check(server)
            self._checked = True
        if self._world_size > 1 and server.calibration:  # GPUs do not always calibrate alike, to the last bit
            self._broadcast_tensors(_weights(server).values(), 0)

    def train(self, server: Server, cohort: Cohort) -> Iterator[Result | Failure]:
        """Trains as many clients at a time as there are ranks, and gives all results to every rank.

        Raises:
            RankLostError: Another rank has ended.
        """
        for start in range(0, len(cohort.participants), self._world_size):
            tasks = [server.make_task(c) for c in cohort.participants[start : start + self._world_size]]
            mine = tasks[self._rank] if self._rank < len(tasks) else None
            own = self._train(mine) if mine else None
            for trainer in range(len(tasks)):
                yield self._share(own, trainer)

    def metrics(self, report: RoundReport) -> dict[str, float]:
        """Nothing that the report does not say."""
        return {}

    @property
    def _device(self) -> torch.device:
        return next(self._local.model.method.parameters()).device

    def _train(self, task: Task) -> Result | Failure:
        """One client's work; an error in it is this client's failure, as it is on a network.

        Our own broken invariants, and a GPU that can compute no more, end the run all the same.
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
        """The result of the rank that trained a client; what the client remembers is kept."""
        if self._world_size == 1:
            assert own is not None
            return own
        memory = self._local.memories.get(own.client_id) if own else None
        result, memory = self._broadcast((own, memory), trainer)
        if memory:
            self._local.memories[result.client_id] = memory
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
        """What ``source`` has; its tensors travel as they are."""
        packed, tensors = pack(message) if self._rank == source else (b"", [])
        header = [packed]
        with lost_ranks():
            dist.broadcast_object_list(header, source, device=self._device)
        if self._rank != source:
            message, tensors = unpack(header[0], self._device)
        self._broadcast_tensors(tensors, source)
        return message

    def _broadcast_tensors(self, tensors: Iterable[Tensor], source: int) -> None:
        """Brings their bytes to all ranks in one piece, by way of the device that can communicate."""
        known = [tensor for tensor in tensors if tensor.numel()]
        if not known:
            return
        whole = torch.cat([tensor.to(self._device).reshape(-1).view(torch.uint8) for tensor in known])
        with lost_ranks():
            dist.broadcast(whole, source)
        if self._rank == source:
            return
        for tensor, piece in zip(known, whole.split([tensor.nbytes for tensor in known]), strict=True):
            tensor.copy_(piece.clone().view(tensor.dtype).view(tensor.shape))


def pack(message: Any) -> tuple[bytes, list[Tensor]]:
    """An object without its tensors, and the tensors."""
    stream, tensors = io.BytesIO(), []

    class Pickler(pickle.Pickler):
        def persistent_id(self, thing: Any) -> Any:
            if not isinstance(thing, Tensor):
                return None
            tensors.append(thing)
            return tuple(thing.shape), thing.dtype, thing.device.type == "cpu"

    Pickler(stream, pickle.HIGHEST_PROTOCOL).dump(message)
    return stream.getvalue(), tensors


def unpack(packed: bytes, device: torch.device) -> tuple[Any, list[Tensor]]:
    """The object that :func:`pack` took apart, and its tensors in the same order, still without their values.

    Args:
        packed: The object without its tensors, from another process of this run.
        device: Where the tensors are that were not on the CPU.
    """
    tensors: list[Tensor] = []

    class Unpickler(pickle.Unpickler):
        def persistent_load(self, description: Any) -> Tensor:
            shape, dtype, on_cpu = description
            tensors.append(torch.empty(shape, dtype=dtype, device="cpu" if on_cpu else device))
            return tensors[-1]

    return Unpickler(io.BytesIO(packed)).load(), tensors


@contextmanager
def lost_ranks() -> Iterator[None]:
    """Says what it means that processes cannot talk to each other any more."""
    try:
        yield
    except RuntimeError as error:
        raise RankLostError(
            "another process of this run has ended: see what it said; --ckpt_path last goes on"
        ) from error


def _works(device: torch.device) -> bool:
    """Whether a device computes still: an error of a CUDA kernel, unlike one of memory, is all that it says after."""
    try:
        torch.zeros(1, device=device).item()
    except RuntimeError:
        return False
    return True


def _weights(server: Server) -> Tensors:
    return flatten(server.model.read(server.model.modules))
