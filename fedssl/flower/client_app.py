"""ClientApp for Flower: the core's local update, on images and frozen layers that lie on this machine."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import lru_cache

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedssl.data.clients import ClientData
from fedssl.data.datasets import SampleSet
from fedssl.data.images import FederatedData
from fedssl.federation.federation import make_client
from fedssl.flower.cache import ClientCache
from fedssl.flower.own_images import OwnImages
from fedssl.flower.recipe import read_recipe
from fedssl.flower.records import Hello, Lacking, Order, decode_order, decode_question, encode_answer, encode_hello
from fedssl.flower.settings import Node, read_node
from fedssl.protocol.messages import Failure, Result, Task, Tensors
from fedssl.utils.units import format_bytes

logger = logging.getLogger(__name__)
app = ClientApp()


@app.query()
def hello(message: Message, context: Context) -> Message:
    """Answer which client this node is, which frozen layers it holds, and how many images of its own."""
    node = read_node(context.node_config)
    run_id, recipe = decode_question(message.content)
    held = ClientCache(node.cache, run_id, node.client_id).held()
    images = len(worker(recipe, node.data_root).images(node)) if node.images else 0
    return Message(encode_hello(Hello(node.client_id, held, node.memory_bytes, images)), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train for one round; report any failure to the server, which continues without this client."""
    node = read_node(context.node_config)
    try:
        answer = work(node, decode_order(message.content))
    except Exception as error:
        logger.exception("client %d failed", node.client_id)
        answer = Failure(node.client_id, f"{type(error).__name__}: {error}")
    return Message(encode_answer(answer), reply_to=message)


def work(node: Node, order: Order) -> Result | Failure | Lacking:
    """Train one task, or say why not."""
    task = order.task
    if task.client_id != node.client_id:
        raise ValueError(f"a task of client {task.client_id} reached client {node.client_id}")
    # Before anything is stored or loaded for it. The server now believes that the frozen parts arrived; ``Lacking``
    # corrects that when a later stage fits.
    if node.memory_bytes and order.needed_bytes > node.memory_bytes:
        needs, has = format_bytes(order.needed_bytes), format_bytes(node.memory_bytes)
        return Failure(task.client_id, f"declines stage {task.stage.index}: it needs {needs}, has {has}", declined=True)
    cache = ClientCache(node.cache, order.run_id, node.client_id)
    # Stored even if other parts are lacking, so that the second message brings those only.
    for name, tensors in task.frozen.items():
        cache.put(name, task.frozen_ids[name], tensors)
    complete = _complete(task, cache)
    if complete is None:
        return Lacking(task.client_id, cache.held())
    return worker(order.recipe, node.data_root).train(complete, node, cache)


class Worker:
    """Model and data of a run; a process that serves several clients shares them.

    Args:
        recipe: Recipe of the run.
        data_root: Folder of all data sets on this machine.
    """

    def __init__(self, recipe: str, data_root: str | None) -> None:
        self._recipe = read_recipe(recipe, data_root)
        self._local = make_client(self._recipe.module.settings, _never)

    def images(self, node: Node) -> SampleSet:
        """Find the node's own images, or its share of the run's data set.

        Raises:
            ValueError: The run has fewer clients, or the images do not fit the encoder.
        """
        data = self._recipe.data
        images = _own_images(data, node.images) if node.images else _share(data, node.client_id)
        images.check_encoder(self._recipe.module.model.encoder.spec)
        return images

    def train(self, task: Task, node: Node, cache: ClientCache) -> Result | Failure:
        """Train a client from the memory of its last round before this one."""
        local, remembered = self._local, cache.memory(task.round)
        # One process may serve several clients, and none may start from what another remembers.
        local.load_state_dict(remembered or local.state_dict() | {"client_states": {}})
        # Every time, as the nodes that share this process may have different devices.
        local.model.to(node.device)
        local.book.times.device = node.device
        with self._recipe.autocast(node.device):
            result = local(task, self.images(node))
        state = local.state_dict()
        if state["client_states"]:
            cache.remember(task.round, state)
        return result


# Only one: a process that goes on to another run must not keep the model and the data of the last one.
@lru_cache(maxsize=1)
def worker(recipe: str, data_root: str | None) -> Worker:
    """Build the worker of a run, once in a process."""
    return Worker(recipe, data_root)


def _own_images(data: ClientData, folder: str) -> SampleSet:
    if not isinstance(data, FederatedData):
        raise ValueError(f"images {folder} in --node-config: the clients of this run have {type(data).__name__}")
    return data.read("folder", "train", folder)


def _share(data: ClientData, client_id: int) -> SampleSet:
    if isinstance(data, OwnImages):
        raise ValueError("the clients of this run hold images of their own: set images in --node-config")
    if not hasattr(data, "datasets"):
        data.setup("fit")
    if client_id >= data.num_clients:
        raise ValueError(f"client-id {client_id}: the run has clients 0 to {data.num_clients - 1}")
    return data.datasets.clients[client_id]


def _complete(task: Task, cache: ClientCache) -> Task | None:
    """Add the frozen parts that the cache has to a task; ``None`` if it lacks one."""
    frozen = dict(task.frozen)
    for name, content in task.frozen_ids.items():
        tensors = frozen.get(name) or cache.get(name, content)
        if tensors is None:
            return None
        frozen[name] = tensors
    return replace(task, frozen=frozen)


def _never(name: str, content: str) -> Tensors:
    raise AssertionError(f"{name} was not in the task")
