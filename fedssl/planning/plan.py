"""What a run will cost each device, before any training."""

from __future__ import annotations

import copy
import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from fedssl.costs.fake_step import StepPrediction
from fedssl.costs.forecast import Forecast, largest_batch
from fedssl.devices import DeviceProfile, DeviceSource, Fleet, fleet_stages
from fedssl.planning.traffic import ClientTraffic, RoundPlayer, RoundTraffic, by_client
from fedssl.server.client_stage import typical_choices
from fedssl.server.participation import Participation
from fedssl.training.federated import FederatedSSL
from layerwise import Scheme, Stage, layer_shares, paper_cost, reference_scheme


@dataclass(frozen=True)
class StagePlan:
    """One stage; traffic and multiply-accumulates are those of the mean client over the whole stage.

    Args:
        stage: Its layers and rounds.
        step: Cost of a local step at the configured batch size, of the clients that train most.
        bank_bytes: Memory of the largest bank of a client.
        macs: Of local training.
        down_bytes: Received from the server.
        up_bytes: Sent to the server.
    """

    stage: Stage
    step: StepPrediction
    bank_bytes: int
    macs: float
    down_bytes: float
    up_bytes: float

    @property
    def peak_memory_bytes(self) -> int:
        """Most bytes alive at once."""
        return self.step.peak + self.bank_bytes

    def as_dict(self) -> dict[str, Any]:
        """Plain types."""
        layers = {"index": self.stage.index, "rounds": self.stage.rounds}
        blocks = {"present": list(self.stage.present), "trained": list(self.stage.trained)}
        costs = {"macs": self.macs, "down_bytes": self.down_bytes, "up_bytes": self.up_bytes}
        return layers | blocks | costs | {"peak_memory_bytes": self.peak_memory_bytes, "step": self.step.as_dict()}


class Planner:
    """Plans a configured run under any scheme; what local steps cost is found once for all of them.

    Args:
        module: The configured run; its weights are not changed.
        images: Images of each client.
    """

    def __init__(self, module: FederatedSSL, images: list[int]) -> None:
        self.module = module
        self.images = images
        self.predictor = module.predictor()
        self.model = self.predictor.model
        self.forecast = self._forecast([])

    @property
    def num_blocks(self) -> int:
        """Blocks of the full encoder."""
        return len(self.model.encoder.blocks)

    def largest_batch(self, batch_size: int) -> int:
        """Images of the largest local step of any client."""
        return largest_batch(self.images, batch_size)

    def fleet(self, devices: DeviceSource, limited: bool = True) -> Fleet:
        """The clients' devices with a clock at zero; their memory counts only if ``limited``."""
        profiles = devices.profiles(len(self.images), self.module.seed)
        if not limited:
            profiles = [replace(profile, memory_bytes=math.inf) for profile in profiles]
        return Fleet(profiles, self.images, self._forecast(profiles), self.module.deadline)

    def _forecast(self, profiles: list[DeviceProfile]) -> Forecast:
        module, predictor = self.module, self.predictor
        rule = module.memory.rule(lambda: predictor, self.images, module.batch_size, profiles)
        need = rule.need if rule else None
        return Forecast(self.model, predictor, module.local_epochs, module.batch_size, need)

    def rounds(self, scheme: Scheme, stages: list[Stage], fleet: Fleet | None) -> list[RoundTraffic]:
        """Traffic of every round."""
        module = self.module
        selector = copy.deepcopy(module.selector)
        participation = Participation(self.images, module.participation, module.dropout, selector, fleet, module.seed)
        player = RoundPlayer(self.model, scheme, participation, self.forecast, module.calibration, module.seed)
        return player.play(stages)

    def plan(self, scheme: Scheme, limited: bool = True) -> list[StagePlan]:
        """Plans every stage of the run under a scheme.

        Args:
            scheme: Cuts the run into stages.
            limited: Whether devices without the memory for a stage sit it out, where the run has devices.

        Raises:
            ValueError: No device has the memory.
        """
        fleet = self.fleet(self.module.devices, limited) if self.module.devices else None
        stages = fleet_stages(scheme, self.num_blocks, self.module.rounds, fleet)
        choices = [typical_choices(scheme, stage, self.module.seed) for stage in stages]
        if fleet:
            fleet.check([each[-1] for each in choices])
        traffic = by_client(self.rounds(scheme, stages, fleet), len(stages), len(self.images))
        shares = [self.shares(each, fleet) for each in choices]
        return [self._plan(*each) for each in zip(stages, shares, traffic, strict=True)]

    def shares(self, choices: list[Stage], fleet: Fleet | None) -> list[Stage]:
        """Which of the choices each client takes; the last if none fits."""
        clients = range(len(self.images))
        return [(fleet.largest(client, choices) or choices[-1]) if fleet else choices[0] for client in clients]

    def _plan(self, stage: Stage, shares: list[Stage], clients: list[ClientTraffic]) -> StagePlan:
        largest = max(shares, key=lambda share: share.extent)
        step = self.predictor(largest, self.largest_batch(self.module.batch_size))
        each = [each for each in zip(clients, shares, self.images, strict=True) if each[0].rounds]
        macs = sum(client.rounds * self.forecast(share, size).macs for client, share, size in each)
        macs += sum(client.fills * self.forecast.filling_macs(share, size) for client, share, size in each)
        bank = max(self.predictor.bank_bytes(share, size) for share, size in zip(shares, self.images, strict=True))
        down, up = sum(client.down_bytes for client in clients), sum(client.up_bytes for client in clients)
        return StagePlan(stage, step, bank, macs / len(clients), down / len(clients), up / len(clients))


def total(plans: list[StagePlan]) -> dict[str, float]:
    """The largest memory and the sums of the rest, for the mean client."""
    return {
        "peak_memory_bytes": max(plan.peak_memory_bytes for plan in plans),
        "macs": sum(plan.macs for plan in plans),
        "down_bytes": sum(plan.down_bytes for plan in plans),
        "up_bytes": sum(plan.up_bytes for plan in plans),
    }


def plan_as_dict(planner: Planner) -> dict[str, Any]:
    """The plan beside end-to-end training with the same settings; a ratio is end-to-end over planned.

    The two conventions stand side by side: ``ours`` is what this code executes and sends, for the mean client;
    ``paper`` is counted as LW-FedSSL's table 2 counts, for one sample and a client that takes part in every round.
    """
    module = planner.module
    plans, whole = planner.plan(module.scheme), total(planner.plan(reference_scheme(), limited=False))
    planned = total(plans)
    ours = {"total": planned, "end_to_end": whole, "ratio": _ratio(whole, planned)}
    return {
        "convention": {"ours": ours, "paper": paper_convention(module)},
        "summary": module.summary | {"clients": len(planner.images), "rounds": module.rounds},
        "stages": [plan.as_dict() for plan in plans],
        **ours,
    }


def paper_convention(module: FederatedSSL) -> dict[str, Any]:
    """The figures that the papers would print for this run.

    Those of LW-FedSSL (:mod:`layerwise.paper_cost`), and for each stage the shares of end-to-end training in units of
    layers, as FLL counts (:mod:`layerwise.layer_cost`).
    """
    model = module.model
    heads, views = model.method.heads(), model.method.views_in_paper

    def stages_of(scheme: Scheme) -> list[Stage]:
        stages = scheme.stages(len(model.encoder.blocks), module.rounds)
        return [typical_choices(scheme, stage, module.seed)[0] for stage in stages]

    def figures(scheme: Scheme) -> dict[str, float]:
        stages = stages_of(scheme)
        cost = paper_cost(model.encoder, stages, heads, module.local_epochs, views)
        worst = paper_cost(model.encoder, stages, heads, module.local_epochs, views, downloads_all=True)
        return {"gflops": cost.gflops, "traffic_gb": cost.traffic_gb, "worst_traffic_gb": worst.traffic_gb}

    planned, whole = figures(module.scheme), figures(reference_scheme())
    layers = [asdict(share) for share in layer_shares(model.encoder, stages_of(module.scheme))]
    return {"total": planned, "end_to_end": whole, "ratio": _ratio(whole, planned), "layers": layers}


def _ratio(whole: dict[str, float], planned: dict[str, float]) -> dict[str, float]:
    return {key: whole[key] / planned[key] for key in planned}
