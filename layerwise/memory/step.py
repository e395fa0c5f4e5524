"""Training steps whose activations are kept, recomputed or compressed, segment by segment."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.checkpoint import checkpoint

from layerwise.memory.codec import WIDTHS, StoredTensor
from layerwise.meter import LiveBytes, is_product

SMALLEST = 4096
"""Smallest tensor in bytes that is worth compressing."""

STATISTIC = 16
"""Factor by which statistics (of norms, of attention) are smaller than a segment's input; they are kept as they are."""


class ChangedInPlaceError(RuntimeError):
    """Change in place of a kept result, after which recomputation would start from another value."""


@dataclass(frozen=True)
class Action:
    """Treatment of a segment's activations.

    Args:
        recompute: ``all`` keeps the segment's input only; ``cheap`` also the results of matrix products, convolutions
            and attention, so that the rest is recomputed in little time.
        bits: Mean bits of a kept float: 8, 4 or 2; 0 keeps it uncompressed.
    """

    recompute: Literal["nothing", "cheap", "all"] = "nothing"
    bits: int = 0

    def __post_init__(self) -> None:
        if self.bits not in (0, *WIDTHS):
            raise ValueError(f"bits of an action must be one of {(0, *WIDTHS)}, got {self.bits!r}")


KEEP = Action()
Actions = Mapping[str, Action]


class PlannedStep(AbstractContextManager["PlannedStep"]):
    """Context manager that applies an action to each segment in the forward and backward pass of a step.

    Recomputation is torch's own non-reentrant checkpointing; compression sits in saved-tensor hooks. Create it once and
    enter it at every step.

    Args:
        model: Model that holds the segments.
        actions: Action by module name; segments without one keep everything.
        seed: Seed of stochastic rounding, whose random numbers continue from step to step.

    Attributes:
        peak_bytes: Peak bytes that the first step held for backward: kept, compressed, restored and recomputed tensors.
            Parameters and buffers do not count.
    """

    def __init__(self, model: nn.Module, actions: Actions, seed: int = 0) -> None:
        modules = dict(model.named_modules())
        self._segments = [(modules[name], action) for name, action in actions.items()]
        self._state = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
        self._seed = seed
        self._generators: dict[torch.device, torch.Generator] = {}
        self._stored: dict[tuple[int, int], weakref.ref[StoredTensor]] = {}
        self._ledger: LiveBytes | None = LiveBytes(())
        self._exit = ExitStack()
        self.peak_bytes = 0

    def __enter__(self) -> PlannedStep:
        self._stored = {}
        # Every step of a stage has the same shapes, so one measured step is enough; following each tensor takes time.
        self._ledger = None if self.peak_bytes else LiveBytes(())
        if self._ledger:
            self._exit.enter_context(saved_tensors_hooks(self._follow, lambda tensor: tensor))
        for module, action in self._segments:
            # An instance attribute hides the class's method from nn.Module.__call__; deleting it brings that back.
            module.forward = partial(self._run, module, module.forward, action)
            self._exit.callback(delattr, module, "forward")
        return self

    def __exit__(self, *exception: Any) -> None:
        self._exit.close()
        if self._ledger:
            self.peak_bytes = self._ledger.peak

    def _run(self, module: nn.Module, forward: Callable[..., Tensor], action: Action, *inputs: Tensor) -> Tensor:
        """Run a segment's forward pass under its action."""
        if not torch.is_grad_enabled():
            return forward(*inputs)
        smallest = max(SMALLEST // 4, inputs[0].numel() // STATISTIC)
        store = partial(self._store, action.bits, smallest)
        with saved_tensors_hooks(store, _restored):
            if action.recompute == "nothing":
                return forward(*inputs)
            kept: list[Any] | None = [] if action.recompute == "cheap" else None
            contexts = partial(self._contexts, module, kept, store)
            return checkpoint(
                forward,
                *inputs,
                use_reentrant=False,
                context_fn=contexts,
                # Fake tensors draw no random numbers, and their device need not exist on this machine.
                preserve_rng_state=not isinstance(inputs[0], FakeTensor),
            )

    def _contexts(
        self, module: nn.Module, kept: list[Any] | None, store: Callable[[Tensor], Any]
    ) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        keeping = nullcontext() if kept is None else _Keeping(kept, store)
        return keeping, _again(module, kept, self._follow if self._ledger else None)

    def _store(self, bits: int, smallest: int, tensor: Tensor) -> Any:
        """Save a tensor for backward; tensors that share a storage are compressed once."""
        storage = tensor.untyped_storage()
        # The version tells a value from what it was before a change in place: those must not share one compressed copy.
        key = storage._cdata, tensor._version
        if not bits or not tensor.is_floating_point() or tensor.numel() < smallest or storage._cdata in self._state:
            return self._follow(tensor)
        known = self._stored.get(key)
        stored = known() if known else None
        if stored is None:
            stored = StoredTensor(tensor, bits, self._generator(tensor.device), self._follow)
            # Weak: the handles in the autograd graph own the copy, which must die with the graph and not with the step.
            self._stored[key] = weakref.ref(stored)
            # The address may be given to another storage as soon as this one is gone.
            weakref.finalize(storage, self._stored.pop, key, None).atexit = False
        return stored.handle(tensor)

    def _follow(self, tensor: Tensor) -> Tensor:
        if self._ledger and tensor.untyped_storage()._cdata not in self._state:
            self._ledger.follow(tensor)
        return tensor

    def _generator(self, device: torch.device) -> torch.Generator:
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(self._seed)
        return self._generators[device]


def _restored(saved: Any) -> Tensor:
    return saved if isinstance(saved, Tensor) else saved()


class _Keeping(TorchDispatchMode):
    """Dispatch mode that keeps the results of products in a segment's forward pass.

    Args:
        kept: List that receives the results in order.
        store: Function that saves a tensor for backward.
    """

    def __init__(self, kept: list[_Kept], store: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self._kept = kept
        self._store = store

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and keep its result if it is a product."""
        out = func(*args, **(kwargs or {}))
        if is_product(func):
            self._kept.append(tree_map_only(Tensor, self._keep, out))
        return out

    def _keep(self, tensor: Tensor) -> _Kept:
        # Only a detached tensor that is made with this dispatch key shares the counter of changes in place.
        with torch._C._SetExcludeDispatchKeyGuard(torch._C.DispatchKey.ADInplaceOrView, False):
            alias = tensor.detach()
        saved = self._store(alias)
        return _Kept(saved, alias if saved is alias else None, alias._version)


@dataclass
class _Kept:
    """Kept result of a product, with the means to detect a later change in place."""

    saved: Any
    alias: Tensor | None
    version: int

    def restored(self) -> Tensor:
        """Return the result.

        Raises:
            ChangedInPlaceError: An operation changed it in place.
        """
        if self.alias is not None and self.alias._version != self.version:
            raise ChangedInPlaceError("a kept result was changed in place: recompute this segment as a whole")
        return _restored(self.saved)


class _Replaying(TorchDispatchMode):
    """Dispatch mode for the recomputation of a segment, with kept results in place of products.

    Args:
        kept: Kept results in order; ``None`` recomputes everything.
        follow: Callback for every recomputed tensor; ``None`` for none.
    """

    def __init__(self, kept: list[Any] | None, follow: Callable[[Tensor], Tensor] | None) -> None:
        super().__init__()
        self._kept = None if kept is None else iter(kept)
        self._follow = follow

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, or return its kept result."""
        if self._kept is not None and is_product(func):
            return tree_map_only(_Kept, _Kept.restored, next(self._kept))
        out = func(*args, **(kwargs or {}))
        return tree_map_only(Tensor, self._follow, out) if self._follow else out


@contextmanager
def _again(module: nn.Module, kept: list[Any] | None, follow: Callable[[Tensor], Tensor] | None) -> Iterator[None]:
    """Wrap a segment's recomputation with copied buffers, or batch norms would count every batch twice."""
    buffers = [(m, name, buffer) for m in module.modules() for name, buffer in m._buffers.items() if buffer is not None]
    replaying = nullcontext() if kept is None and follow is None else _Replaying(kept, follow)
    try:
        for owner, name, buffer in buffers:
            owner._buffers[name] = buffer.clone()
        with replaying:
            yield
    finally:
        for owner, name, buffer in buffers:
            owner._buffers[name] = buffer


def segments(model: nn.Module, roots: Iterable[nn.Module]) -> list[str]:
    """Return the names of the modules that are segments: blocks of a ViT, residual blocks of a ResNet, stems, heads.

    An ``nn.Sequential`` of modules with parts of their own is taken apart; everything else is one segment.

    Args:
        model: Model that holds the roots.
        roots: Trained modules.
    """
    names = {id(module): name for name, module in model.named_modules()}
    return [names[id(module)] for root in roots for module in _parts(root)]


def _parts(module: nn.Module) -> Iterator[nn.Module]:
    children = list(module.children())
    if type(module).forward is nn.Sequential.forward and any(True for child in children for _ in child.children()):
        for child in children:
            yield from _parts(child)
    elif children:
        yield module
