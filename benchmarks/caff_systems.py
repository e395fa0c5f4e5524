"""Systems of the CAFF benchmark, limits of devices, and the layers that each device can train within them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch.optim import AdamW

from benchmarks.caff_tasks import CLIENTS, DEPTH, Task
from fedssl import DeviceClasses, NormWeightedMean, UnchangedMean, WeightedMean
from fedssl.costs.prediction import Forecast, Need, StepPredictor
from fedssl.devices import Fleet, fleet_stages
from fedssl.protocol.parts import build_model
from fedssl.server.aggregation import Aggregation
from layerwise import AllSmall, EndToEnd, HeterogeneousLoRA, LastLayers, LoRA, Scheme

RANKS = [1, 2, 4, 8]
NEEDS = {"memory": "peak_memory_bytes", "upload_limit": "active_bytes", "macs_limit": "macs"}
"""Keys of device classes, and what a limit is compared with."""


@dataclass(frozen=True)
class System:
    """CAFF or a baseline.

    Args:
        scheme: Of the depths to choose from; ``None``: the encoder's own.
        rule: Aggregation.
        adapters: Whether it trains them in place of layers.
        pretrained: Whether it starts from the pretrained weights.
    """

    scheme: Callable[[list[int] | None], Scheme]
    rule: type[Aggregation] = UnchangedMean
    adapters: bool = False
    pretrained: bool = True


FULL = "full finetuning"
SYSTEMS = {
    FULL: System(lambda _: EndToEnd()),
    "full training from scratch": System(lambda _: EndToEnd(), pretrained=False),
    "CAFF": System(LastLayers),
    "CAFF, rule B": System(LastLayers, WeightedMean),
    "AllSmall": System(AllSmall),
    "DropDevices": System(lambda _: EndToEnd()),
    "LoRA": System(lambda _: LoRA(RANKS), adapters=True),
    "HetLoRA": System(lambda _: HeterogeneousLoRA(RANKS), NormWeightedMean, adapters=True),
}
ONE, EQUAL = (FULL, "full training from scratch", "LoRA"), ("CAFF", "AllSmall", "LoRA")
UNEQUAL = ("CAFF", "AllSmall", "DropDevices", "LoRA", "HetLoRA")
ALL = ("CAFF", "CAFF, rule B", "AllSmall", "DropDevices", "LoRA", "HetLoRA")
THIRDS = (1, 2 / 3, 1 / 3)


@dataclass(frozen=True)
class Limits:
    """Limits of three classes of devices, as fractions of the cost of full finetuning.

    Args:
        systems: That are compared under them.
        quantity: Key of a device class.
        fractions: Of the strongest to the weakest class; none: no devices.
        rare: Whether only the weakest class holds some classes of images.
    """

    systems: tuple[str, ...]
    quantity: str = "memory"
    fractions: tuple[float, ...] = ()
    rare: bool = False

    def classes(self, whole: Need) -> list[dict[str, Any]]:
        """Classes of devices, a third of the clients each."""
        amount, unit = getattr(whole, NEEDS[self.quantity]), "" if self.quantity == "macs_limit" else "B"
        limits = [f"{math.ceil(fraction * amount)}{unit}" for fraction in self.fractions]
        return [{self.quantity: limit if unit else int(limit), "count": CLIENTS // 3} for limit in limits]


FLEETS = {
    "none": Limits(ONE),
    "memory 3/4": Limits(EQUAL, "memory", (3 / 4,) * 3),
    "memory 1/2": Limits(EQUAL, "memory", (1 / 2,) * 3),
    "memory 1, 2/3, 1/3": Limits(ALL, "memory", THIRDS),
    "upload 1/4": Limits(EQUAL, "upload_limit", (1 / 4,) * 3),
    "upload 1, 2/3, 1/3": Limits(UNEQUAL, "upload_limit", THIRDS),
    "operations 3/4": Limits(EQUAL, "macs_limit", (3 / 4,) * 3),
    "operations 1, 2/3, 1/3": Limits(UNEQUAL, "macs_limit", THIRDS),
    "none; rare classes": Limits(ONE, rare=True),
    "memory 1, 2/3, 1/3; rare classes": Limits(ALL, "memory", THIRDS, rare=True),
}


@dataclass(frozen=True)
class Shares:
    """Layers that the devices of a fleet train.

    Args:
        depth: Blocks of the network.
        extents: Trained blocks, or adapters in each, by client; 0: nothing fits.
        devices: Their limits; ``None``: none.
    """

    depth: int
    extents: tuple[int, ...]
    devices: DeviceClasses | None

    def text(self, adapters: bool) -> str:
        """By class of devices."""
        firsts = self.extents[:: CLIENTS // 3]
        return " / ".join(str(RANKS[each - 1] if adapters else each) if each else "-" for each in firsts)


class Shareout:
    """Finds what the devices of fleets train of a task's network, before anything is trained.

    Args:
        task: The task.
        images: Of every client.
    """

    def __init__(self, task: Task, images: list[int]) -> None:
        self._task, self._images = task, images
        self._forecasts = {adapters: self._forecast(adapters) for adapters in (False, True)}
        (whole,) = EndToEnd().stages(DEPTH, 1)
        self._whole = self._forecasts[False](whole, max(images))

    def __call__(self, system: System, limits: Limits) -> Shares | None:
        """``None`` if no device can train anything."""
        scheme, classes = system.scheme(list(range(1, DEPTH + 1))), limits.classes(self._whole)
        if not classes:
            (stage,) = scheme.stages(DEPTH, 1)
            return Shares(DEPTH, (stage.num_trained,) * CLIENTS, None)
        devices = DeviceClasses(classes)
        fleet = Fleet(devices.profiles(CLIENTS, 0), self._images, self._forecasts[system.adapters], None)
        try:
            (stage,) = fleet_stages(scheme, DEPTH, 1, fleet)
        except ValueError:
            return None
        choices = scheme.choices(stage)
        chosen = [fleet.choose(client, choices) for client in range(CLIENTS)]
        extents = tuple(0 if each is None else choices[each].num_trained for each in chosen)
        return Shares(stage.depth, extents, devices) if any(extents) else None

    def _forecast(self, adapters: bool) -> Forecast:
        task = self._task
        spec = LoRA(RANKS).adapt(task.spec(DEPTH)) if adapters else task.spec(DEPTH)
        model = build_model(spec, task.method(), task.views, partial(AdamW, lr=1e-3), 0)
        return Forecast(StepPredictor(model), 1, task.batch_size)
