import pytest
import torch

from layerwise import EncoderSpec, build_encoder

VIT = {"patch_size": 4, "depth": 4, "embed_dim": 32, "num_heads": 2}


@pytest.fixture
def vit_spec():
    """Four blocks of width 32 on sixteen patches, without class token, averaged."""
    options = VIT | {"global_pool": "avg", "class_token": False}
    return EncoderSpec("vit_tiny_patch16_224", 16, 1, "sincos", options)


@pytest.fixture
def token_spec():
    """The same with a class token, which is also the feature."""
    return EncoderSpec("vit_tiny_patch16_224", 16, 1, "learned", VIT)


@pytest.fixture
def resnet_spec():
    return EncoderSpec("resnet18", 32, 3)


@pytest.fixture
def vit(vit_spec):
    return build_encoder(vit_spec, seed=0)


@pytest.fixture
def resnet(resnet_spec):
    return build_encoder(resnet_spec, seed=0)


@pytest.fixture
def images():
    """Draws normalised images that fit a spec."""

    def draw(spec, batch=2, seed=0):
        shape = (batch, spec.in_channels, spec.image_size, spec.image_size)
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))

    return draw


@pytest.fixture
def scramble():
    """Gives norms, biases, batch statistics and tokens random values: none acts as identity or zero."""

    def fill(module, seed=0):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for tensor in [*module.parameters(), *module.buffers()]:
                if tensor.is_floating_point() and tensor.ndim == 1:
                    tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
                elif tensor.ndim == 3:
                    tensor.add_(torch.randn(tensor.shape, generator=generator))
        return module

    return fill
