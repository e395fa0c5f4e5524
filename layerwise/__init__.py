"""Encoders as layers, stages and schemes; what a stage costs."""

from layerwise.encoder import EncoderSpec, StagedEncoder, build_encoder, timm_arguments
from layerwise.growth import renew, transfer_weights
from layerwise.meter import StepCost, StepMeter
from layerwise.schemes import EndToEnd, LayerWise, Progressive, Scheme
from layerwise.stage import Stage, split_encoder

__all__ = [
    "EncoderSpec",
    "EndToEnd",
    "LayerWise",
    "Progressive",
    "Scheme",
    "Stage",
    "StagedEncoder",
    "StepCost",
    "StepMeter",
    "build_encoder",
    "renew",
    "split_encoder",
    "timm_arguments",
    "transfer_weights",
]
