"""Updates for aggregation rules, driven by hand."""

import torch
from torch import Tensor, nn
from torch.optim import SGD

from fedssl.server.aggregation import Aggregation, Update
from fedssl.server.participation import Participation


def update_of(
    tensors: dict[str, Tensor], num_images: int = 1, steps: int = 1, client_id: int = 0, lr_factor: float = 1.0
) -> Update:
    """A client's; rules of means do not ask who it is."""
    return Update(client_id, tensors, num_images, steps, loss=1.0, lr_factor=lr_factor)


def settle(rule: Aggregation, proximal: float = 0.0, steps: int = 40) -> float:
    """Where two clients with the losses w^2 / 2 and 4 (w - 1)^2 / 2 settle; their mean is least at 0.8."""
    rule.check_optimizer(SGD([nn.Parameter(torch.zeros(1))], lr=0.1))
    rule.begin(Participation([9] * 2), 3)
    now = torch.zeros(1)
    for _ in range(300):
        rule.begin_round({"a/w": now})
        for client, (curvature, least) in enumerate([(1, 0), (4, 1)]):
            own, correction = now.clone(), rule.correction(client, {"a/w": now}).get("a/w", torch.zeros(1))
            for _ in range(steps):
                own -= 0.1 * (curvature * (own - least) + proximal * (own - now) + correction)
            rule.add(update_of({"a/w": own}, 9, steps, client_id=client))
        now = rule.finish()["a/w"]
    return now.item()
