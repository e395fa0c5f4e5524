"""Encoders as layers, stages and schemes; what a stage costs."""

from layerwise.encoder import EncoderSpec, StagedEncoder, build_encoder, timm_arguments
from layerwise.growth import renew, transfer_weights
from layerwise.live_bytes import LiveBytes, tensor_bytes
from layerwise.meter import StepCost, StepMeter
from layerwise.paper_cost import PaperCost, paper_cost
from layerwise.schemes import EndToEnd, LayerWise, Progressive, Scheme, reference_scheme
from layerwise.stage import Stage, split_encoder

__all__ = [
    "EncoderSpec",
    "EndToEnd",
    "LayerWise",
    "LiveBytes",
    "PaperCost",
    "Progressive",
    "Scheme",
    "Stage",
    "StagedEncoder",
    "StepCost",
    "StepMeter",
    "build_encoder",
    "paper_cost",
    "reference_scheme",
    "renew",
    "split_encoder",
    "tensor_bytes",
    "timm_arguments",
    "transfer_weights",
]
