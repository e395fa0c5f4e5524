"""What a run will cost each device, before any training."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from fedssl.federated import FederatedSSL
from fedssl.participation import cohort_size
from fedssl.prediction import StepPrediction, StepPredictor
from fedssl.traffic import ClientTraffic, play_rounds
from layerwise import Scheme, Stage, paper_cost, reference_scheme

MIB = 2**20


@dataclass(frozen=True)
class StagePlan:
    """One stage; traffic and multiply-accumulates are those of the mean client over the whole stage.

    Args:
        stage: Its layers and rounds.
        step: Cost of a local step at the configured batch size.
        macs: Of local training.
        down_bytes: Received from the server.
        up_bytes: Sent to the server.
    """

    stage: Stage
    step: StepPrediction
    macs: float
    down_bytes: float
    up_bytes: float

    def as_dict(self) -> dict[str, Any]:
        """Plain types."""
        layers = {"index": self.stage.index, "rounds": self.stage.rounds}
        blocks = {"present": list(self.stage.present), "trained": list(self.stage.trained)}
        costs = {"macs": self.macs, "down_bytes": self.down_bytes, "up_bytes": self.up_bytes}
        return layers | blocks | costs | {"peak_memory_bytes": self.step.peak, "step": self.step.as_dict()}


def plan_run(module: FederatedSSL, images: list[int], scheme: Scheme | None = None) -> list[StagePlan]:
    """Plans every stage.

    Args:
        module: The configured run; its weights are not changed.
        images: Images of each client.
        scheme: Instead of the configured one.
    """
    model = module.build()
    stages = (scheme or module.scheme).stages(len(model.encoder.blocks), module.rounds)
    predictor = StepPredictor(model, module.alignment, module.proximal)
    cohort = cohort_size(module.participation, len(images))
    played = play_rounds(model, stages, len(images), cohort, module.dropout, module.calibration, module.seed)
    largest = max(max(_batches(n, module.batch_size), default=2) for n in images)
    plans = []
    for stage, traffic in zip(stages, played, strict=True):
        macs = sum(
            client.rounds * module.local_epochs * count * predictor(stage, size).macs
            for client, n in zip(traffic, images, strict=True)
            for size, count in _batches(n, module.batch_size).items()
        )
        plans.append(_stage_plan(stage, predictor(stage, largest), macs, traffic))
    return plans


def total(plans: list[StagePlan]) -> dict[str, float]:
    """The largest memory and the sums of the rest, for the mean client."""
    return {
        "peak_memory_bytes": max(plan.step.peak for plan in plans),
        "macs": sum(plan.macs for plan in plans),
        "down_bytes": sum(plan.down_bytes for plan in plans),
        "up_bytes": sum(plan.up_bytes for plan in plans),
    }


def plan_as_dict(module: FederatedSSL, images: list[int]) -> dict[str, Any]:
    """The plan beside end-to-end training with the same settings; a ratio is end-to-end over planned.

    The two conventions stand side by side: ``ours`` is what this code executes and sends, for the mean client;
    ``paper`` is counted as LW-FedSSL's table 2 counts, for one sample and a client that takes part in every round.
    """
    plans, whole = plan_run(module, images), total(plan_run(module, images, reference_scheme()))
    planned = total(plans)
    ours = {"total": planned, "end_to_end": whole, "ratio": _ratio(whole, planned)}
    return {
        "convention": {"ours": ours, "paper": paper_convention(module)},
        "summary": module.summary | {"clients": len(images), "rounds": module.rounds},
        "stages": [plan.as_dict() for plan in plans],
        **ours,
    }


def paper_convention(module: FederatedSSL) -> dict[str, dict[str, float]]:
    """The figures that the paper would print for this run, see :mod:`layerwise.paper_cost`."""
    model = module.model
    heads, views = model.method.heads(), model.method.views_in_paper

    def figures(scheme: Scheme) -> dict[str, float]:
        stages = scheme.stages(len(model.encoder.blocks), module.rounds)
        cost = paper_cost(model.encoder, stages, heads, module.local_epochs, views)
        worst = paper_cost(model.encoder, stages, heads, module.local_epochs, views, downloads_all=True)
        return {"gflops": cost.gflops, "traffic_gb": cost.traffic_gb, "worst_traffic_gb": worst.traffic_gb}

    planned, whole = figures(module.scheme), figures(reference_scheme())
    return {"total": planned, "end_to_end": whole, "ratio": _ratio(whole, planned)}


def _ratio(whole: dict[str, float], planned: dict[str, float]) -> dict[str, float]:
    return {key: whole[key] / planned[key] for key in planned}


def print_plan(plan: dict[str, Any], console: Console | None = None) -> None:
    """The plan as a table."""
    console = console or Console()
    summary = plan["summary"]
    table = Table(
        caption="kept: activations that autograd keeps for backward",
        title=f"{summary['scheme']} {summary['method']}, a client over {summary['rounds']} rounds",
    )
    for column in ("stage", "blocks", "rounds", "peak MiB", "kept MiB", "GMACs", "down MiB", "up MiB"):
        table.add_column(column, justify="right", no_wrap=True)
    for stage in plan["stages"]:
        blocks = f"{len(stage['trained'])} of {len(stage['present'])}"
        activations = f"{stage['step']['activations'] / MIB:,.1f}"
        peak, *costs = _cells(stage)
        table.add_row(str(stage["index"] + 1), blocks, str(stage["rounds"]), peak, activations, *costs)
    for label, key in (("all", "total"), ("end-to-end", "end_to_end")):
        peak, *costs = _cells(plan[key])
        table.add_row(label, "", str(summary["rounds"]), peak, "", *costs, style="bold")
    ratio = plan["ratio"]
    keys = ("macs", "down_bytes", "up_bytes")
    table.add_row("ratio", "", "", f"{ratio['peak_memory_bytes']:.2f}x", "", *(f"{ratio[k]:.2f}x" for k in keys))
    console.print(table)
    paper = plan["convention"]["paper"]
    for label, key in (("planned", "total"), ("end-to-end", "end_to_end")):
        figures = paper[key]
        console.print(
            f"as the paper counts, {label}: {figures['gflops']:,.1f} GFLOPs, {figures['traffic_gb']:,.2f} GB of "
            f"traffic, {figures['worst_traffic_gb']:,.2f} GB if every round downloads all layers",
            highlight=False,
        )


def _stage_plan(stage: Stage, step: StepPrediction, macs: int, traffic: list[ClientTraffic]) -> StagePlan:
    clients = len(traffic)
    down = sum(client.down_bytes for client in traffic) / clients
    up = sum(client.up_bytes for client in traffic) / clients
    return StagePlan(stage, step, macs / clients, down, up)


def _batches(images: int, batch_size: int) -> Counter[int]:
    """Local steps of one epoch by batch size; a batch of one image gives no step."""
    full, rest = divmod(images, batch_size)
    return Counter({batch_size: full} if full else {}) + Counter({rest: 1} if rest > 1 else {})


def _cells(costs: dict[str, Any]) -> list[str]:
    peak, macs = costs["peak_memory_bytes"] / MIB, costs["macs"] / 1e9
    values = (peak, macs, costs["down_bytes"] / MIB, costs["up_bytes"] / MIB)
    return [f"{value:,.0f}" if value >= 1000 else f"{value:.1f}" for value in values]
