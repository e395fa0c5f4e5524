"""Model whose parts have names: those that stages freeze, train and send, and state that every client starts anew."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from fedssl.protocol.messages import STATE, Parts, content_id
from fedssl.utils.seeding import derive_seed
from layerwise import MicroBatches, Stage, StagedEncoder, StagedSpec, build_encoder, check_micro_batch, split_encoder
from layerwise.pretrained import load_heads
from ssl_methods import Foundation, Method, OptimizerFactory, TwoViews


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


MethodFactory = Callable[[Foundation], Method]


class PartitionedModel:
    """Model whose parts have names; server and clients each own one, with the same names.

    Part names are those of the encoder (``stem``, ``block.0``, ..., ``tail``, ``reshape.0``, ...) and
    ``head.projector``, ``head.predictor``, ..., ``state.center``, ... of the method. Parts without tensors are left out
    everywhere.

    Attributes:
        client_state: Of the method, which every client starts anew.
        micro_batch: Images that an attached stage's layers take at a time; ``None``: the whole batch.

    Raises:
        ValueError: A tensor of the method would leak from client to client.
    """

    def __init__(self, encoder: StagedEncoder, method: Method) -> None:
        self.encoder = encoder
        self.method = method
        self.micro_batch: int | None = None
        check_state(method, encoder)
        self.client_state = InitialState(method.client_state())
        modules = encoder.parts() | {f"head.{name}": head for name, head in method.heads().items()}
        modules |= {f"{STATE}{name}": state for name, state in method.state_parts().items()}
        self.parts = {name: module for name, module in modules.items() if module.state_dict()}
        self.heads = [name for name in self.parts if name.startswith("head.")]
        self.states = [name for name in self.parts if name.startswith(STATE)]

    def trained_names(self, stage: Stage) -> list[str]:
        """List the parts that are trained and travel both ways: the stage's layers, all heads and method state."""
        return self._held(stage.trained_parts(), stage) + self.heads + self.states

    def frozen_names(self, stage: Stage) -> list[str]:
        """List the parts that clients need but do not train."""
        return self._held(stage.frozen_parts(), stage)

    def _held(self, names: list[str], stage: Stage) -> list[str]:
        """Leave out parts without tensors, and let all groups of a block follow it unless the stage says which."""
        blocks = range(0 if stage.groups else len(self.encoder.blocks))
        groups = {f"block.{i}": self.encoder.group_parts(i) for i in blocks}
        return [each for name in names for each in (name, *groups.get(name, ())) if each in self.parts]

    def tied(self) -> dict[str, str]:
        """Map encoder parts that share a parameter with a head to the name of that head."""
        owner = {parameter: head for head in self.heads for parameter in self.parts[head].parameters()}
        encoder = {name: module for name, module in self.parts.items() if name not in self.heads + self.states}
        return {name: owner[p] for name, module in encoder.items() for p in module.parameters() if p in owner}

    def read(self, names: Iterable[str]) -> Parts:
        """Return the tensors of the named parts, sharing memory with the model."""
        return {name: dict(self.parts[name].state_dict()) for name in names}

    def content_id(self, name: str) -> str:
        """Return the content hash of a part."""
        return content_id(self.read([name])[name])

    def parameters(self, names: Iterable[str]) -> dict[str, nn.Parameter]:
        """Return the parameters of the named parts, by ``part/name``."""
        return {f"{part}/{name}": own for part in names for name, own in self.parts[part].named_parameters()}

    @torch.no_grad()
    def write(self, parts: Parts) -> None:
        """Copy tensors into the model in place."""
        for part, tensors in parts.items():
            own = self.parts[part].state_dict()
            for name, tensor in tensors.items():
                own[name].copy_(tensor)

    def attach(self, stage: Stage) -> None:
        """Point the method at the stage's active part, on top of its frozen prefix."""
        self.encoder.use_adapters(stage.adapters)
        self.encoder.use_groups(stage.groups)
        prefix, active = split_encoder(self.encoder, stage, self.method.dense)
        if self.micro_batch is None:
            self.method.attach(prefix, active)
        else:
            self.method.attach(MicroBatches(prefix, self.micro_batch), MicroBatches(active, self.micro_batch))
        for name in self.frozen_names(stage):
            self.parts[name].requires_grad_(False)

    def in_micro_batches(self, size: int | None) -> PartitionedModel:
        """Set the number of images that an attached stage's layers take at a time.

        Raises:
            ValueError: The encoder gives something else then.
        """
        if size is not None:
            check_micro_batch(self.encoder, size)
        self.micro_batch = size
        return self

    def whole_stage(self) -> Stage:
        """Return a stage that trains all present blocks."""
        blocks = tuple(range(self.encoder.depth))
        return Stage(0, blocks, blocks, True, 1)

    def attach_whole(self, stage: Stage) -> None:
        """Point the method at all parts of the stage, with nothing frozen (server-side calibration)."""
        whole = Stage(stage.index, stage.present, stage.present, True, stage.rounds, groups=stage.groups)
        self.method.attach(*split_encoder(self.encoder, whole, self.method.dense))

    def classify(self, images: Tensor) -> Tensor | None:
        """Return class scores (B, classes) of normalised images, by the trained classifier and output module.

        ``None`` if the method has no classifier.
        """
        _, whole = split_encoder(self.encoder, self.whole_stage())
        return self.method.classify(whole(images))

    def to(self, device: torch.device) -> PartitionedModel:
        """Move encoder and method."""
        self.encoder.to(device)
        self.method.to(device)
        return self


def build_model(
    spec: StagedSpec,
    method: MethodFactory,
    augment: TwoViews | None,
    optimizer: OptimizerFactory,
    seed: int,
    *,
    heads: str | None = None,
) -> PartitionedModel:
    """Build a freshly initialised model; the same arguments give the same weights.

    Args:
        spec: Architecture of the encoder.
        method: Objective.
        augment: Augmentation of images; ``None`` for text.
        optimizer: Optimizer of local training.
        seed: Seed of the initial weights.
        heads: File or folder with the heads of an earlier run; ``None`` initialises at random.

    Raises:
        FileNotFoundError: ``heads`` names no file.
        ValueError: Encoder, method and augmentation do not belong together, or the heads are of another method.
    """
    encoder = build_encoder(spec, derive_seed(seed, "encoder"))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, "heads"))
        objective = method(Foundation(encoder, encoder.feature_dim, augment, optimizer))
    objective.check_encoder(spec)
    if heads:
        load_heads(nn.ModuleDict(objective.heads()), Path(heads))
    return PartitionedModel(encoder, objective)
