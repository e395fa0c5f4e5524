import functools

import pytest
import pytorch_lightning as pl
import torch

from layerwise import EncoderSpec, build_encoder
from ssl_methods import BYOL, DINO, Foundation, MoCoV3, SimCLR, SimSiam, TwoViews, VICReg

METHODS = [SimCLR, BYOL, MoCoV3, SimSiam, VICReg, DINO]
VIT = {"patch_size": 4, "depth": 4, "embed_dim": 32, "num_heads": 2}
ENCODERS = {
    "vit_token": EncoderSpec("vit_tiny_patch16_224", 16, 1, "learned", VIT),
    "vit_avg": EncoderSpec("vit_tiny_patch16_224", 16, 1, "sincos", VIT | {"global_pool": "avg", "class_token": False}),
    "resnet18": EncoderSpec("resnet18", 32, 3),
}


@pytest.fixture(params=METHODS, ids=lambda method: method.__name__)
def method_class(request):
    return request.param


@pytest.fixture
def encoder():
    """Builds one of the encoders by name."""
    return lambda name="vit_avg", seed=0: build_encoder(ENCODERS[name], seed)


@pytest.fixture
def objective():
    """Builds a method with small heads on an encoder, reproducibly."""
    optimizer = functools.partial(torch.optim.AdamW, lr=3e-3)

    def build(method_class, backbone, augment=None, optimizer=optimizer, seed=0, **settings):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            sizes = {"hidden_dim": 16, "output_dim": 8} | settings
            augment = augment or TwoViews(flip=0.5, noise=0.1)
            return method_class(Foundation(backbone, backbone.feature_dim, augment, optimizer), **sizes)

    return build


@pytest.fixture
def images():
    """Draws random uint8 images."""

    def draw(count, channels=1, size=16, seed=0):
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(0, 256, (count, channels, size, size), dtype=torch.uint8, generator=generator)

    return draw


@pytest.fixture
def trainer():
    """Builds a Trainer that writes nothing."""
    return functools.partial(
        pl.Trainer,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
