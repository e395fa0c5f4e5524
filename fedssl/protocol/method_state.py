"""State of a method beside its heads, which travels like them or is reset for every client."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ssl_methods import Method


class InitialState:
    """Initial values of the tensors that are reset for every client.

    One resident model trains all clients, so that whatever a client leaves in it would tell the next one of its data,
    and make results depend on who shares a process with whom.

    Args:
        modules: Their parameters and buffers are kept as they are now.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        owners = dict.fromkeys(owner for module in modules for owner in module.modules())
        own = [(owner, name, tensor) for owner in owners for name, tensor in _direct(owner).items()]
        self._first = [(o, name, None if t is None else t.detach().clone()) for o, name, t in own]

    @torch.no_grad()
    def reset(self) -> None:
        """Give all of them their initial values."""
        for owner, name, first in self._first:
            now = getattr(owner, name)
            if first is None:
                setattr(owner, name, None)
            elif now is not None and now.shape == first.shape:
                now.copy_(first)
            else:  # Some banks of features take their shape from the first batch.
                setattr(owner, name, first.to(first.device if now is None else now.device, copy=True))


def check_state(method: Method, encoder: nn.Module) -> None:
    """Refuse tensors that would pass from client to client unseen: neither sent nor reset.

    Args:
        method: As it was built; momentum targets do not exist yet, they are copied from the online branch every round.
        encoder: Its tensors are looked after.

    Raises:
        ValueError: There is one, or one is declared both ways.
    """
    travelling = [*method.heads().values(), *method.state_parts().values()]
    # A buffer that is not persistent is in no state_dict, and so neither sent nor saved.
    sent = {id(tensor) for module in travelling for tensor in module.state_dict(keep_vars=True).values()}
    renewed = {id(tensor) for module in method.client_state() for tensor in _tensors(module)}
    known = {id(tensor) for module in (encoder, method.backbone) for tensor in _tensors(module)}
    for name, tensor in [*method.named_parameters(), *method.named_buffers()]:
        if id(tensor) in sent and id(tensor) in renewed:
            raise ValueError(f"{type(method).__name__}.{name} both travels and is in client_state(): keep one of them")
        if id(tensor) not in sent | renewed | known:
            raise ValueError(
                f"{type(method).__name__}.{name} is in no part that travels and would leak from client to client: "
                "put it into a module and name that in state_parts() or client_state()"
            )


def _direct(owner: nn.Module) -> dict[str, Tensor | None]:
    return {**owner._parameters, **owner._buffers}


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]
