"""Updates for aggregation rules, driven by hand."""

from torch import Tensor

from fedssl.server.aggregation import Update


def update_of(
    tensors: dict[str, Tensor], num_images: int = 1, steps: int = 1, client_id: int = 0, lr_factor: float = 1.0
) -> Update:
    """A client's; rules of means do not ask who it is."""
    return Update(client_id, tensors, num_images, steps, loss=1.0, lr_factor=lr_factor)
