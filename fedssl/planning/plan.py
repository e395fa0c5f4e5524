"""Plan of a run: its cost for each device, from the ledger of a dry run."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from fedssl.costs.fake_step import StepPrediction
from fedssl.costs.prediction import Forecast, largest_batch
from fedssl.devices import DeviceProfile
from fedssl.federation.dry import dry_federation, dry_rounds
from fedssl.federation.federation import Federation
from fedssl.federation.settings import FederationSettings
from fedssl.protocol.parts import PartitionedModel
from fedssl.server.client_stage import StageOptions
from fedssl.server.participation import Participation
from fedssl.server.rounds import RoundReport
from layerwise import Scheme, Stage, layer_shares, paper_cost, reference_scheme

SUMS = ("macs", "down_bytes", "up_bytes")
"""Costs that add up over rounds and stages; memory does not."""


@dataclass(frozen=True)
class StagePlan:
    """Plan of one stage; traffic and multiply-accumulates are those of the mean client over the whole stage.

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
        """Convert to plain types, for JSON."""
        layers = {"index": self.stage.index, "rounds": self.stage.rounds}
        blocks = {"present": list(self.stage.present), "trained": list(self.stage.trained)}
        costs = {"macs": self.macs, "down_bytes": self.down_bytes, "up_bytes": self.up_bytes}
        return layers | blocks | costs | {"peak_memory_bytes": self.peak_memory_bytes, "step": self.step.as_dict()}


class Planner:
    """Plan a run under any scheme; the cost of local steps is found once for all of them.

    Args:
        settings: Settings of the configured run.
        images: Number of images of each client.
    """

    def __init__(self, settings: FederationSettings, images: list[int]) -> None:
        self.settings = settings
        self.images = images
        self.predictor = settings.predictor()

    @property
    def model(self) -> PartitionedModel:
        """Model of the predictor; the values of its weights mean nothing."""
        return self.predictor.model

    @property
    def num_blocks(self) -> int:
        """Number of blocks of the full encoder."""
        return len(self.model.encoder.blocks)

    @cached_property
    def forecast(self) -> Forecast:
        """Needs of a client, whatever the devices."""
        return self.federation(self.settings.scheme, []).forecast

    @property
    def batch_size(self) -> int:
        """Images of the largest local step of any client; the configured batch size, if some client can fill it."""
        return largest_batch(self.images, self.settings.local.batch_size)

    def federation(
        self, scheme: Scheme, profiles: list[DeviceProfile] | None = None, participation: Participation | None = None
    ) -> Federation:
        """Return the run as it would be under a scheme, to be run dry.

        Args:
            scheme: Cuts the run into stages.
            profiles: Devices of the clients; ``None`` takes those of the run, an empty list none.
            participation: Draws the cohorts; ``None`` draws as the settings say.
        """
        settings = replace(self.settings, scheme=scheme)
        images = self.images if participation is None else participation.images
        return dry_federation(settings, images, self.predictor, profiles=profiles, participation=participation)

    def plan(self, scheme: Scheme, limited: bool = True) -> list[StagePlan]:
        """Plan every stage of the run under a scheme.

        Args:
            scheme: Cuts the run into stages.
            limited: False lifts all limits of the devices, where the run has devices.

        Raises:
            ValueError: No device can hold a stage.
        """
        # End-to-end training is what a fleet often cannot hold: as a reference it must be priced all the same.
        federation = self.federation(scheme, None if limited else self._unlimited())
        federation.check_devices()
        server, reports = federation.server, [each.report for each in dry_rounds(federation)]
        plans = []
        for stage, options in zip(server.stages, server.options, strict=True):
            variants = server.participation.trained(options.priced)
            plans.append(self._plan(stage, variants, [report for report in reports if report.stage == stage.index]))
        return plans

    def _unlimited(self) -> list[DeviceProfile]:
        devices = self.settings.cohort.devices
        profiles = devices.profiles(len(self.images), self.settings.seed) if devices else []
        return [
            replace(profile, memory_bytes=math.inf, upload_limit_bytes=math.inf, macs_limit=math.inf)
            for profile in profiles
        ]

    def _plan(self, stage: Stage, variants: list[Stage], reports: list[RoundReport]) -> StagePlan:
        """Plan a stage from the variant that each client trains and the reports of its rounds."""
        largest = max(variants, key=lambda variant: variant.num_trained)
        step = self.predictor(largest, self.batch_size)
        bank = max(self.predictor.bank_bytes(own, size) for own, size in zip(variants, self.images, strict=True))
        # Over all clients and not over those that took part: the mean is what a member of the federation can expect.
        costs = (sum(getattr(report, key) for report in reports) / len(self.images) for key in SUMS)
        return StagePlan(stage, step, bank, *costs)


def total(plans: list[StagePlan]) -> dict[str, float]:
    """Return the largest memory and the sums of the other costs, for the mean client."""
    peak = max(plan.peak_memory_bytes for plan in plans)
    return {"peak_memory_bytes": peak} | {key: sum(getattr(plan, key) for plan in plans) for key in SUMS}


def plan_as_dict(planner: Planner) -> dict[str, Any]:
    """Return the plan beside end-to-end training with the same settings; a ratio is end-to-end over planned.

    The two conventions stand side by side: ``ours`` is what this code executes and sends, for the mean client;
    ``paper`` is counted as LW-FedSSL's table 2 counts, for one sample and a client that takes part in every round.
    """
    settings = planner.settings
    plans, whole = planner.plan(settings.scheme), total(planner.plan(reference_scheme(), limited=False))
    planned = total(plans)
    ours = {"total": planned, "end_to_end": whole, "ratio": _ratio(whole, planned)}
    return {
        "convention": {"ours": ours, "paper": paper_convention(planner)},
        "summary": {
            "scheme": settings.scheme.name,
            "method": type(planner.model.method).__name__,
            "clients": len(planner.images),
            "rounds": settings.rounds,
        },
        "stages": [plan.as_dict() for plan in plans],
        **ours,
    }


def paper_convention(planner: Planner) -> dict[str, Any]:
    """Return the figures that the papers would print for this run.

    These are those of LW-FedSSL (:mod:`layerwise.paper_cost`), with representation alignment if it is on, and for each
    stage the shares of end-to-end training in units of layers, as FLL counts (:func:`layerwise.layer_shares`).
    """
    model, settings = planner.model, planner.settings
    heads, views = model.method.heads(), model.method.views_in_paper
    aligned = settings.local.alignment is not None

    def stages_of(scheme: Scheme) -> list[Stage]:
        stages = scheme.stages(planner.num_blocks, settings.rounds)
        return [StageOptions(scheme, stage, settings.seed).priced[0] for stage in stages]

    def figures(scheme: Scheme) -> dict[str, float]:
        run = (model.encoder, stages_of(scheme), heads, settings.local.epochs, views)
        cost, worst = (paper_cost(*run, downloads_all=every, aligned=aligned) for every in (False, True))
        return {"gflops": cost.gflops, "traffic_gb": cost.traffic_gb, "worst_traffic_gb": worst.traffic_gb}

    planned, whole = figures(settings.scheme), figures(reference_scheme())
    layers = [asdict(share) for share in layer_shares(model.encoder, stages_of(settings.scheme))]
    return {"total": planned, "end_to_end": whole, "ratio": _ratio(whole, planned), "layers": layers}


def _ratio(whole: dict[str, float], planned: dict[str, float]) -> dict[str, float]:
    return {key: whole[key] / planned[key] for key in planned}
