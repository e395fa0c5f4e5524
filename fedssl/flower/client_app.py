"""ClientApp for Flower: decodes records, runs the local update and encodes its answer."""

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
    """Answer which client this node is and which frozen layers it holds."""
    node = read_node(context.node_config)
    return Message(encode_hello(introduce(node, *decode_question(message.content))), reply_to=message)


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
