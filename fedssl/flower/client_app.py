"""Flower's ClientApp: records in, the core's local update, records out."""

from __future__ import annotations

import logging

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedssl.flower.node import read_node
from fedssl.flower.records import decode_order, decode_question, encode_answer, encode_hello
from fedssl.flower.worker import introduce, work
from fedssl.protocol.messages import Failure

logger = logging.getLogger(__name__)
app = ClientApp()


@app.query()
def hello(message: Message, context: Context) -> Message:
    """Says which client this node is, and which frozen layers it holds."""
    node = read_node(context.node_config)
    return Message(encode_hello(introduce(node, *decode_question(message.content))), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """One round; whatever goes wrong here is told to the server, which goes on without this client."""
    node = read_node(context.node_config)
    try:
        answer = work(node, decode_order(message.content))
    except Exception as error:
        logger.exception("client %d failed", node.client_id)
        answer = Failure(node.client_id, f"{type(error).__name__}: {error}")
    return Message(encode_answer(answer), reply_to=message)
