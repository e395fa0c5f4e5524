"""Encoders split into layers, the stages and schemes that train them, and their costs."""

from layerwise.caff import AllSmall, HeterogeneousLoRA, LastLayers, LoRA
from layerwise.causal_transformer import CausalTransformerSpec
from layerwise.encoder import StagedEncoder, StagedSpec, build_encoder
from layerwise.heterofl import FedRolex, HeteroFL
from layerwise.image_encoder import EncoderSpec, timm_arguments, use_small_stem
from layerwise.meter import LiveBytes, StepCost, StepMeter, tensor_bytes
from layerwise.micro_batch import MicroBatches, check_micro_batch
from layerwise.pace import BlockPerturbation, PaceReading, block_perturbation, relative_slope
from layerwise.paper_cost import LayerShare, PaperCost, layer_shares, paper_cost
from layerwise.schemes import EndToEnd, LayerWise, Progressive, Scheme, reference_scheme, scheme_choices
from layerwise.stage import Stage, check_alike, grew, keep_layers, renew, split_encoder, transfer_weights

__all__ = [
    "AllSmall",
    "BlockPerturbation",
    "CausalTransformerSpec",
    "EncoderSpec",
    "EndToEnd",
    "FedRolex",
    "HeteroFL",
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
