"""ClientApp for Flower: the core's local update, on images and frozen layers that lie on this machine."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, TypeVar

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedssl.data.clients import ClientData
from fedssl.data.datasets import SampleSet
from fedssl.federation.federation import make_client
from fedssl.flower.audit import Audit
from fedssl.flower.cache import ClientCache
from fedssl.flower.consent import Consent, ConsentError, content_hash, read_consent, time_limit
from fedssl.flower.own_images import OwnImages
from fedssl.flower.recipe import read_recipe
from fedssl.flower.records import (
    Hello,
    Lacking,
    Order,
    Question,
    Refusal,
    decode_order,
    decode_question,
    encode_answer,
    encode_hello,
)
from fedssl.flower.settings import Node, read_node
from fedssl.protocol.messages import Failure, Result, Task, Tensors
from fedssl.utils.units import format_bytes

logger = logging.getLogger(__name__)
app = ClientApp()


@app.query()
def hello(message: Message, context: Context) -> Message:
    """Answer which client this node is, which frozen layers it holds, and how many images of its own."""
    return _reply(message, context, decode_question, introduce)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train for one round; a refusal lets the server continue without this client."""
    return _reply(message, context, decode_order, work)


Asked = TypeVar("Asked", Question, Order)


def _reply(
    message: Message,
    context: Context,
    decode: Callable[[RecordDict], Asked],
    answer: Callable[[Node, Consent, Asked], RecordDict],
) -> Message:
    """Give the answer if the operator allows what is asked, and write down what leaves.

    Whatever goes wrong is told on this machine only: to the server goes one of a few words.
    """
    facts: dict[str, Any] = {"asked": message.metadata.message_type, "flower_run": message.metadata.run_id}
    audit, content = None, encode_answer(Refusal("error"))
    try:
        node = read_node(context.node_config)
        facts["client"] = node.client_id
        audit, consent = Audit(node.audit), read_consent(node.consent)
        asked = decode(message.content)
        facts |= {"run": asked.run_id, "recipe": content_hash(asked.recipe)}
        consent.check_recipe(facts["recipe"], audit.keep_recipe(asked.run_id, asked.recipe))
        if isinstance(asked, Order):
            facts["round"] = asked.task.round
            consent.check_rounds(audit.rounds_today(node.client_id))
        content = answer(node, consent, asked)
    except Exception as error:
        facts["reason"] = f"{type(error).__name__}: {error}"
        # What a person can mend needs no traceback.
        logger.error("client %s: %s", facts.get("client"), error, exc_info=not isinstance(error, ValueError | OSError))
        if isinstance(error, ConsentError):
            content = encode_answer(Refusal("consent"))
    try:
        if audit:
            audit.write(content, **facts)
    except Exception as error:
        logger.error("nothing is sent, as it cannot be written down: %s", error)
        content = encode_answer(Refusal("error"))
    return Message(content, reply_to=message)


def introduce(node: Node, consent: Consent, question: Question) -> RecordDict:
    """Describe this node, unless its operator does not allow the run."""
    held = ClientCache(node.cache, question.run_id, node.client_id).held()
    images = 0
    if node.images or node.consent:
        images = worker(question.recipe, node.data_root, consent).count_own(node)
    told = 0 if "counts" in consent.withhold else images
    return encode_hello(Hello(node.client_id, held, node.memory_bytes, told, consent.withhold))


def work(node: Node, consent: Consent, order: Order) -> RecordDict:
    """Train one task, or say why not."""
    task = order.task
    if task.client_id != node.client_id:
        raise ValueError(f"a task of client {task.client_id} reached client {node.client_id}")
    # Before anything is stored or loaded for it. The server now believes that the frozen parts arrived; ``Lacking``
    # corrects that when a later stage fits.
    if node.memory_bytes and order.needed_bytes > node.memory_bytes:
        needs, has = format_bytes(order.needed_bytes), format_bytes(node.memory_bytes)
        logger.warning("client %d declines stage %d: it needs %s, has %s", task.client_id, task.stage.index, needs, has)
        return encode_answer(Refusal("memory"))
    cache = ClientCache(node.cache, order.run_id, node.client_id)
    # Stored even if other parts are lacking, so that the second message brings those only.
    for name, tensors in task.frozen.items():
        cache.put(name, task.frozen_ids[name], tensors)
    complete = _complete(task, cache)
    if complete is None:
        return encode_answer(Lacking(cache.held()))
    with time_limit(consent.minutes):
        result = worker(order.recipe, node.data_root, consent).train(complete, node, cache)
    if isinstance(result, Failure):
        logger.warning("client %d gives nothing: %s", task.client_id, result.reason)
        return encode_answer(Refusal("images" if result.skipped else "loss"))
    return encode_answer(result, consent.withhold)


class Worker:
    """Model and data of a run; a process that serves several clients shares them.

    Args:
        recipe: Recipe of the run.
        data_root: Folder of all data sets on this machine; ``None`` takes the recipe's.
        consent: What the operator allows.

    Raises:
        ConsentError: The recipe asks for more than that.
    """

    def __init__(self, recipe: str, data_root: str | None, consent: Consent) -> None:
        self._recipe = read_recipe(recipe, data_root, partial(consent.check_settings, data_root=data_root))
        self._local = make_client(self._recipe.module.settings, _never)

    def images(self, node: Node) -> SampleSet:
        """Find the node's own images, or its share of the run's data set.

        Raises:
            ConsentError: The node has images of its own, and the run does not ask for them.
            ValueError: The run has fewer clients, or the images do not fit the encoder.
        """
        data = self._recipe.data
        images = _own_images(data, node.images) if isinstance(data, OwnImages) else _share(data, node)
        images.check_encoder(self._recipe.module.model.encoder.spec)
        return images

    def count_own(self, node: Node) -> int:
        """Count the node's own images; 0 if the run does not ask for them.

        Raises:
            ConsentError: The node has nothing else.
        """
        if isinstance(self._recipe.data, OwnImages):
            return len(self.images(node))
        _check_share(self._recipe.data, node)
        return 0

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
def worker(recipe: str, data_root: str | None, consent: Consent) -> Worker:
    """Build the worker of a run, once in a process."""
    return Worker(recipe, data_root, consent)


def _own_images(data: OwnImages, folder: str | None) -> SampleSet:
    if folder is None:
        raise ConsentError("the clients of this run hold images of their own: set images in --node-config")
    return data.read("folder", "train", folder)


def _check_share(data: ClientData, node: Node) -> None:
    """Keep runs that divide a data set away from the folder of a node's own images."""
    if node.images and not node.data_root:
        raise ConsentError(
            f"this node has images of its own, and the run does not ask for them: it divides {data.dataset}; "
            "to take part with a data set that everyone has, set data-root in --node-config"
        )


def _share(data: ClientData, node: Node) -> SampleSet:
    _check_share(data, node)
    if not hasattr(data, "datasets"):
        data.setup("fit")
    if node.client_id >= data.num_clients:
        raise ValueError(f"client-id {node.client_id}: the run has clients 0 to {data.num_clients - 1}")
    return data.datasets.clients[node.client_id]


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
