"""``train.py plan``: a Trainer that says beforehand what a run will cost."""

from __future__ import annotations

from json import dumps

from pytorch_lightning import Trainer

from fedssl.data import FederatedData, ImageData
from fedssl.federated import FederatedSSL
from fedssl.plan import plan_as_dict, print_plan
from linear_eval import EvaluatedModule


class PlanningTrainer(Trainer):
    """A Lightning Trainer that can also say beforehand what a run will cost."""

    def plan(
        self,
        model: EvaluatedModule,
        datamodule: ImageData,
        json: bool = False,
        images_per_client: int | None = None,
    ) -> None:
        """Predicts what each device will pay for a federated run, without training.

        Args:
            model: The configured run.
            datamodule: Tells how many images each client has.
            json: Print JSON and nothing else.
            images_per_client: Instead of the data set's division; needs no data.

        Raises:
            ValueError: The run is not federated, or neither data nor ``images_per_client`` is there.
        """
        if not isinstance(model, FederatedSSL) or not isinstance(datamodule, FederatedData):
            raise ValueError(f"only federated runs can be planned, this is a {type(model).__name__}")
        plan = plan_as_dict(model, _images_of_clients(datamodule, images_per_client))
        if json:
            print(dumps(plan, indent=2))
        else:
            print_plan(plan)


def _images_of_clients(data: FederatedData, images_per_client: int | None) -> list[int]:
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
