"""A client's work: the core's local update, on images and frozen layers that lie on this machine."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from fedssl.data.clients import ClientData
from fedssl.data.datasets import SampleSet, load_images
from fedssl.data.images import FederatedData
from fedssl.federation.federation import make_client
from fedssl.flower.cache import ClientCache
from fedssl.flower.node import Node
from fedssl.flower.own_images import OwnImages
from fedssl.flower.recipe import read_recipe
from fedssl.flower.records import Hello, Lacking, Order
from fedssl.protocol.messages import Failure, Result, Task, Tensors
from fedssl.utils.units import format_bytes


def introduce(node: Node, run_id: str, recipe: str) -> Hello:
    """Who this client is, and what it has."""
    held = ClientCache(node.cache, run_id, node.client_id).held()
    images = len(Worker.of(recipe, node).images(node)) if node.images else 0
    return Hello(node.client_id, held, node.memory_bytes, images)


def work(node: Node, order: Order) -> Result | Failure | Lacking:
    """Does one task, or says why not."""
    task = order.task
    if task.client_id != node.client_id:
        raise ValueError(f"a task of client {task.client_id} reached client {node.client_id}")
    if node.memory_bytes and order.needed_bytes > node.memory_bytes:
        needs, has = format_bytes(order.needed_bytes), format_bytes(node.memory_bytes)
        return Failure(task.client_id, f"declines stage {task.stage.index}: it needs {needs}, has {has}", declined=True)
    cache = ClientCache(node.cache, order.run_id, node.client_id)
    for name, tensors in task.frozen.items():
        cache.put(name, task.frozen_ids[name], tensors)
    complete = _complete(task, cache)
    if complete is None:
        return Lacking(task.client_id, cache.held())
    return Worker.of(order.recipe, node).train(complete, node, cache)


class Worker:
    """Model and data of a run; a process that serves several clients shares them.

    Args:
        recipe: Of the run.
        data_root: Folder of all data sets on this machine.
    """

    def __init__(self, recipe: str, data_root: str | None) -> None:
        self._recipe = read_recipe(recipe, data_root)
        self._local = make_client(self._recipe.module.settings, _never)
        self._loaded = False

    @staticmethod
    def of(recipe: str, node: Node) -> Worker:
        """The worker of a run; it is built once in a process."""
        return _worker(recipe, node.data_root)

    def images(self, node: Node) -> SampleSet:
        """The node's own images, or its share of the run's data set.

        Raises:
            ValueError: The run has fewer clients, or the images do not fit the encoder.
        """
        data = self._recipe.data
        images = _own_images(data, node.images) if node.images else self._share(data, node.client_id)
        images.check_encoder(self._recipe.module.model.encoder.spec)
        return images

    def train(self, task: Task, node: Node, cache: ClientCache) -> Result | Failure:
        """The local update, with the memory of the client's last round before this one."""
        local, remembered = self._local, cache.memory(task.round)
        local.load_state_dict(remembered or local.state_dict() | {"client_states": {}})
        local.model.to(node.device)
        local.book.times.device = node.device
        with self._recipe.autocast(node.device):
            result = local(task, self.images(node))
        state = local.state_dict()
        if state["client_states"]:
            cache.remember(task.round, state)
        return result

    def _share(self, data: ClientData, client_id: int) -> SampleSet:
        if isinstance(data, OwnImages):
            raise ValueError("the clients of this run hold images of their own: set images in --node-config")
        if not self._loaded:
            data.setup("fit")
            self._loaded = True
        if client_id >= data.num_clients:
            raise ValueError(f"client-id {client_id}: the run has clients 0 to {data.num_clients - 1}")
        return data.federation.clients[client_id]


@lru_cache(maxsize=1)
def _worker(recipe: str, data_root: str | None) -> Worker:
    return Worker(recipe, data_root)


def _own_images(data: ClientData, folder: str) -> SampleSet:
    if not isinstance(data, FederatedData):
        raise ValueError(f"images {folder} in --node-config: the clients of this run have {type(data).__name__}")
    return load_images("folder", "train", folder, data.image_size, data.channels, data.in_memory, download=False)


def _complete(task: Task, cache: ClientCache) -> Task | None:
    """The task with all its frozen parts, or ``None`` if the cache lacks one."""
    frozen = dict(task.frozen)
    for name, content in task.frozen_ids.items():
        tensors = frozen.get(name) or cache.get(name, content)
        if tensors is None:
            return None
        frozen[name] = tensors
    return replace(task, frozen=frozen)


def _never(name: str, content: str) -> Tensors:
    raise AssertionError(f"{name} was not in the task")
