"""Micro-batches inside an encoder, so that a step keeps the activations of a few images only."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


class MicroBatches(nn.Module):
    """Module that runs ``module`` on a few samples at a time, with the same output and the same gradients.

    Gradient caching (Gao et al. 2021, arXiv 2101.06983): forward keeps no activations; backward runs the module again,
    micro-batch after micro-batch, each with its share of the gradient of the whole output. What follows the module sees
    the whole batch, so that a contrastive loss keeps its negatives and a head its batch norms. Random numbers of a
    second run are those of the first.

    Without a graph, as in a frozen prefix or a target branch, the module runs once on each micro-batch.

    Args:
        module: Module that treats every sample by itself; see ``check_micro_batch``.
        size: Samples in a micro-batch.
    """

    def __init__(self, module: nn.Module, size: int) -> None:
        super().__init__()
        self.module = module
        self.size = size

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the output (B, ...) for inputs (B, ...), which get no gradient."""
        pieces = inputs.detach().split(self.size)
        if not torch.is_grad_enabled():
            return torch.cat([self.module(piece) for piece in pieces])
        # Reentrant checkpoints take part in backward only for the sake of an argument that wants a gradient. Those of
        # the other kind free their activations too late on tensors without data, on which steps are predicted.
        anchor = torch.ones((), device=inputs.device, requires_grad=True)
        return torch.cat([checkpoint(self._run, anchor, piece, use_reentrant=True) for piece in pieces])

    def _run(self, anchor: Tensor, piece: Tensor) -> Tensor:
        return self.module(piece)


def check_micro_batch(encoder: nn.Module, size: int) -> None:
    """Refuse an encoder whose output would differ in micro-batches.

    Raises:
        ValueError: The encoder has batch norms, whose statistics would be those of a micro-batch, or the size is below
            1.
    """
    if size < 1:
        raise ValueError(f"micro_batch must be at least 1 image, got {size}")
    norms = [name for name, module in encoder.named_modules() if isinstance(module, _BatchNorm)]
    if norms:
        raise ValueError(
            f"micro_batch {size} needs an encoder that treats every image by itself, such as a Vision Transformer; "
            f"this one has {len(norms)} batch norms ({norms[0]}, ...)"
        )
