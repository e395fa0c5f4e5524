"""Encoders split into layers, the stages and schemes that train them, and their costs."""

from layerwise.caff import AllSmall, HeterogeneousLoRA, LastLayers, LoRA
from layerwise.causal_transformer import CausalTransformerSpec
from layerwise.depth_dropout import check_alike, keep_layers
from layerwise.encoder import EncoderSpec, StagedEncoder, build_encoder, timm_arguments
from layerwise.growth import grew, renew, transfer_weights
from layerwise.layer_cost import LayerShare, layer_shares
from layerwise.meter import LiveBytes, StepCost, StepMeter, tensor_bytes
from layerwise.micro_batch import MicroBatches, check_micro_batch
from layerwise.pace import BlockPerturbation, PaceReading, block_perturbation, relative_slope
from layerwise.paper_cost import PaperCost, paper_cost
from layerwise.resnet import use_small_stem
from layerwise.schemes import EndToEnd, LayerWise, Progressive, Scheme, reference_scheme, scheme_choices
from layerwise.spec import StagedSpec
from layerwise.stage import Stage, split_encoder

__all__ = [
    "AllSmall",
    "BlockPerturbation",
    "CausalTransformerSpec",
    "EncoderSpec",
    "EndToEnd",
    "HeterogeneousLoRA",
    "LastLayers",
    "LayerShare",
    "LayerWise",
    "LiveBytes",
    "LoRA",
    "MicroBatches",
    "PaceReading",
    "PaperCost",
    "Progressive",
    "Scheme",
    "Stage",
    "StagedEncoder",
    "StagedSpec",
    "StepCost",
    "StepMeter",
    "block_perturbation",
    "build_encoder",
    "check_alike",
    "check_micro_batch",
    "grew",
    "keep_layers",
    "layer_shares",
    "paper_cost",
    "reference_scheme",
    "relative_slope",
    "renew",
    "scheme_choices",
    "split_encoder",
    "tensor_bytes",
    "timm_arguments",
    "transfer_weights",
    "use_small_stem",
]
