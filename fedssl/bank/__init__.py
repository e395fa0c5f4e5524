"""Optional: the frozen prefix's outputs are stored on the client, and the active part trains from them."""

from fedssl.bank.rule import ActivationBank

__all__ = ["ActivationBank"]
