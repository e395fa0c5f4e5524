"""A card that need not exist: tensors have shapes and devices, but no values.

A tensor left on the CPU, a generator of another device and a shape that depends on values are errors. What makes the
host wait for the card is noted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

CUDA = torch.device("cuda:0")
COPIES = ("_to_copy", "copy_")
LOSS = ["_local_scalar_dense"] * 3
"""Waits of a round with one epoch: a look if the loss is finite, and the mean loss and squared loss at the end."""


class Card(TorchDispatchMode):
    """Mode in which tensors are fake and may lie on a card.

    Attributes:
        waits: Operations for which the host would wait for the card.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self._fake, self._generators = FakeTensorMode(allow_non_fake_inputs=True), OwnGenerators()

    def __enter__(self) -> Card:
        self._fake.__enter__()
        super().__enter__()
        self._generators.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._generators.__exit__(*error)
        super().__exit__(*error)
        self._fake.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.ops.prim.device.default:
            # Asked by C++ code alone, which would look for a driver: autograd's engine in backward.
            return torch.device("meta") if args[0].device == CUDA else args[0].device
        if kwargs.get("device") == torch.device("meta"):
            kwargs["device"] = CUDA  # that answer, handed on
        name = func.overloadpacket.__name__
        self._note(name, args, kwargs)
        if name == "_local_scalar_dense" and isinstance(args[0], FakeTensor):
            return 1.0 if args[0].is_floating_point() else int(args[0].dtype == torch.bool)
        if name == "nonzero":
            return torch.empty(0, args[0].dim(), dtype=torch.int64, device=args[0].device)
        return func(*args, **kwargs)

    def _note(self, name: str, args: Any, kwargs: dict[str, Any]) -> None:
        if name in COPIES:
            source, target = (args[0], kwargs.get("device")) if name == "_to_copy" else (args[1], args[0].device)
            ends = {source.device.type, (target or source.device).type}
            back, late = (target or source.device).type == "cpu", kwargs.get("non_blocking") or args[2:3] == (True,)
            waits = len(ends) > 1 and (back or not late)
        elif name in ("index", "index_put", "index_put_"):
            waits = args[0].device == CUDA and any(i is not None and i.device != CUDA for i in args[1])
        else:
            waits = name in ("_local_scalar_dense", "nonzero") and args[0].device == CUDA
        if waits:
            self.waits.append(name)


class OwnGenerators(TorchFunctionMode):
    """Mode in which numbers must be drawn by a generator of their device; a fake one is plain in lower modes."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out, generator = func(*args, **(kwargs or {})), (kwargs or {}).get("generator")
        if generator is not None:
            assert generator.device.type == out.device.type, f"{func} draws on {out.device} from {generator.device}"
        return out


class CardGenerator(torch._C.Generator):
    """Generator that says it is of a device, as one of a card cannot be made without it."""

    def __new__(cls, device: torch.device | str = "cpu") -> CardGenerator:
        made = super().__new__(cls)
        made.of = torch.device(device)
        return made

    @property
    def device(self) -> torch.device:
        return self.of


def replace_tensors(module: nn.Module, move: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """Move a module as torch does, but for the parameters' identity: no real tensor can become a fake one."""
    for owner in module.modules():
        for name, old in owner._parameters.items():
            if old is not None and not (isinstance(old, FakeTensor) and old.device == CUDA):
                owner._parameters[name] = nn.Parameter(move(old), old.requires_grad)
        for name, buffer in owner._buffers.items():
            owner._buffers[name] = None if buffer is None else move(buffer)
    return module
