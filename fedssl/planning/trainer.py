"""``train.py plan``: a Trainer that says beforehand what a run will cost."""

from __future__ import annotations

from json import dumps
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningDataModule, Trainer
from rich.console import Console

from fedssl.data.clients import ClientData
from fedssl.devices import DeviceFile
from fedssl.planning.budget import fit_budget, print_budget
from fedssl.planning.fleet_plan import layer_table, plan_fleet, print_fleet, print_layer_table
from fedssl.planning.plan import Planner, plan_as_dict
from fedssl.planning.plot import check_plot, plot_plan
from fedssl.planning.table import print_plan
from fedssl.training.federated import FederatedSSL
from fedssl.utils.units import parse_bytes
from linear_eval import EvaluatedModule


class PlanningTrainer(Trainer):
    """A Lightning Trainer that can also say beforehand what a run will cost."""

    def plan(
        self,
        model: EvaluatedModule,
        datamodule: LightningDataModule,
        json: bool = False,
        images_per_client: int | None = None,
        budget: str | None = None,
        device_profile: str | None = None,
        plot: str | None = None,
    ) -> None:
        """Predicts what each device will pay for a federated run, without training.

        Args:
            model: The configured run.
            datamodule: Tells how many images each client has.
            json: Print JSON and nothing else.
            images_per_client: Instead of the data set's division; needs no data.
            budget: Memory of a device, such as 512MiB: lists what fits it.
            device_profile: YAML or CSV file of devices: says what each of them can hold and how long a round takes.
                Without it the run's own devices are shown, if it has any.
            plot: PNG or SVG file for a picture of memory, operations and traffic over the rounds.

        Raises:
            ValueError: The run is not federated, neither data nor ``images_per_client`` is there, or an option is
                impossible.
        """
        if not isinstance(model, FederatedSSL) or not isinstance(datamodule, ClientData):
            raise ValueError(f"only federated runs can be planned, this is a {type(model).__name__}")
        size = None if budget is None else parse_bytes(budget)
        picture = None if plot is None else check_plot(Path(plot))
        settings, images = model.settings, _images_of_clients(datamodule, images_per_client)
        devices = settings.cohort.devices if device_profile is None else DeviceFile(device_profile)
        planner = Planner(settings, images)
        profiles = devices.profiles(len(images), settings.seed) if devices else []
        plan = plan_as_dict(planner)
        if size:
            plan["budget"] = fit_budget(planner, size)
        if profiles:
            plan["fleet"] = plan_fleet(planner, profiles)
            if settings.scheme.offers_choices:
                plan["layers"] = layer_table(planner, profiles)
        if picture:
            plot_plan(planner, picture)
        if json:
            print(dumps(plan, indent=2, allow_nan=False))
        else:
            _print(plan)


def _print(plan: dict[str, Any]) -> None:
    console = Console()
    print_plan(plan, console)
    if "budget" in plan:
        print_budget(plan["budget"], console)
    if "fleet" in plan:
        print_fleet(plan["fleet"], console)
    if "layers" in plan:
        print_layer_table(plan["layers"], console)


def _images_of_clients(data: ClientData, images_per_client: int | None) -> list[int]:
    if images_per_client is not None:
        if images_per_client < 1:
            raise ValueError(f"images_per_client must be at least 1, got {images_per_client}")
        return [images_per_client] * data.num_clients
    data.download = False
    try:
        data.setup("fit")
    except FileNotFoundError as error:
        raise ValueError(f"{data.dataset} is not here: give --images_per_client, or --data.root ({error})") from error
    return [len(images) for images in data.federation.clients]
