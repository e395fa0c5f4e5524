"""What a client starts a round from, if not simply from the global weights."""

from fedssl.start.fedema import FedEMA
from fedssl.start.fedu import FedU
from fedssl.start.rule import StartRule

__all__ = ["FedEMA", "FedU", "StartRule"]
