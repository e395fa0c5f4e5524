"""Methods with state beside their heads, made of lightly's losses."""

from typing import Any

from lightly.loss import DINOLoss, NTXentLoss
from torch import nn

from ssl_methods import SimCLR, StepOutput, Views


class Undeclared(SimCLR):
    """DINO's loss, whose centre follows the outputs from step to step."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.centred = DINOLoss(self.projector.layers[-1].num_features, warmup_teacher_temp_epochs=1)

    def step(self, hidden: Views) -> StepOutput:
        first, second = (self.projector(self.backbone(view)) for view in hidden)
        return StepOutput(self.centred([first.detach(), second.detach()], [first, second], epoch=1), (first, second))


class Travelling(Undeclared):
    """All clients share a centre."""

    def state_parts(self) -> dict[str, nn.Module]:
        return {"centre": self.centred}


class Renewed(Undeclared):
    """Every client has a centre of its own."""

    def client_state(self) -> list[nn.Module]:
        return [self.centred]


class Both(Travelling, Renewed):
    """Cannot be: what was received would be lost."""


class Queued(SimCLR):
    """A queue of negatives, in buffers that no state_dict has."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.queued = NTXentLoss(memory_bank_size=(16, self.projector.layers[-1].num_features))

    def step(self, hidden: Views) -> StepOutput:
        first, second = (self.projector(self.backbone(view)) for view in hidden)
        return StepOutput(self.queued(first, second), (first, second))

    def client_state(self) -> list[nn.Module]:
        return [self.queued]


class SentQueue(Queued):
    """Cannot be: those buffers are not sent."""

    def state_parts(self) -> dict[str, nn.Module]:
        return {"queue": self.queued}

    def client_state(self) -> list[nn.Module]:
        return []
