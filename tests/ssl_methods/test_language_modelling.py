"""Language modelling: the loss by hand, frozen layers, and what does not belong together."""

import math
from functools import partial

import pytest
import torch
from torch.optim import SGD

from layerwise import CausalTransformerSpec, EncoderSpec, Stage, build_encoder, split_encoder
from ssl_methods import DigitsViews, Foundation, LanguageModelling, SimCLR

SMALL = CausalTransformerSpec(vocabulary=5, context=4, depth=3, width=16, heads=2)
OPTIMIZER = partial(SGD, lr=0.5)
TEXTS = torch.tensor([[0, 1, 2, 3, 4], [4, 4, 1, 0, 2]])


@pytest.fixture
def encoder():
    return build_encoder(SMALL, seed=0)


@pytest.fixture
def method(encoder):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LanguageModelling(Foundation(encoder, encoder.feature_dim, None, OPTIMIZER), vocabulary=5)


class Unchanged(torch.nn.Module):
    """One-hot features: the head's weights are the scores of each following character."""

    def forward(self, characters):
        return torch.nn.functional.one_hot(characters, 3).float()


def test_loss_of_a_table_of_scores_by_hand() -> None:
    method = LanguageModelling(Foundation(Unchanged(), 3, None, OPTIMIZER), vocabulary=3)
    with torch.no_grad():
        method.lm_head.weight.copy_(torch.tensor([[0.0, 1.0, 0.0], [2.0, 0.0, 0.0], [0.0, 0.0, 0.0]]))
        method.lm_head.bias.zero_()
    text = torch.tensor([[0, 1, 0]])
    after_0 = math.log(1 + math.exp(2) + 1) - 2  # scores 0, 2, 0, and 1 follows
    after_1 = math.log(math.e + 1 + 1) - 1  # scores 1, 0, 0, and 0 follows
    loss = method.loss_of(method.inputs(text, torch.zeros(1)))
    assert loss.item() == pytest.approx((after_0 + after_1) / 2)
    assert method.token_nll(Unchanged(), text).tolist() == pytest.approx([after_0, after_1])


def test_scores_of_zero_cost_the_logarithm_of_the_vocabulary(method) -> None:
    torch.nn.init.zeros_(method.lm_head.weight)
    torch.nn.init.zeros_(method.lm_head.bias)
    assert method.loss_of(method.inputs(TEXTS, torch.zeros(2))).item() == pytest.approx(math.log(5))


def test_a_character_is_read_once_and_predicted_once(method) -> None:
    read, following = method.inputs(TEXTS, torch.zeros(2))
    assert read.tolist() == TEXTS[:, :4].tolist()
    assert following.tolist() == TEXTS[:, 1:].tolist()


def test_frozen_layers_change_neither_loss_nor_gradients(method, encoder) -> None:
    inputs = method.inputs(TEXTS, torch.zeros(2))
    method.loss_of(inputs).backward()
    whole = {name: p.grad.clone() for name, p in encoder.blocks[2].named_parameters()}
    head = method.lm_head.weight.grad.clone()
    method.zero_grad()
    method.attach(*split_encoder(encoder, Stage(0, (0, 1, 2), (2,), False, 1)))
    loss = method.loss_of(inputs)
    loss.backward()
    assert torch.allclose(method.lm_head.weight.grad, head)
    for name, parameter in encoder.blocks[2].named_parameters():
        assert torch.allclose(parameter.grad, whole[name], atol=1e-7)
    assert all(parameter.grad is None for parameter in method.prefix.parameters())


def test_twenty_steps_lower_the_loss(method) -> None:
    optimizer = method.configure_optimizers()
    inputs = method.inputs(TEXTS, torch.zeros(2))
    first = method.loss_of(inputs).item()
    for _ in range(20):
        optimizer.zero_grad()
        loss = method.loss_of(inputs)
        loss.backward()
        optimizer.step()
    assert loss.item() < first / 2


def test_examples_have_the_shapes_of_inputs(method) -> None:
    shapes = [each.shape for each in method.inputs(TEXTS, torch.zeros(2))]
    assert [each.shape for each in method.example_inputs((2, 4))] == shapes
    assert method.loss_of(method.example_inputs((2, 4))).isfinite()


def test_views_of_images_are_refused(encoder) -> None:
    with pytest.raises(ValueError, match="augment DigitsViews makes views of images, text has none"):
        LanguageModelling(Foundation(encoder, 16, DigitsViews(), OPTIMIZER))


def test_a_method_for_images_needs_views(encoder) -> None:
    with pytest.raises(ValueError, match="SimCLR trains on views of images: set augment"):
        SimCLR(Foundation(encoder, 16, None, OPTIMIZER))


def test_a_vocabulary_of_one_is_refused(encoder) -> None:
    with pytest.raises(ValueError, match="vocabulary must be at least 2, got 1"):
        LanguageModelling(Foundation(encoder, 16, None, OPTIMIZER), vocabulary=1)


def test_encoder_and_method_must_agree(method, encoder) -> None:
    method.check_encoder(SMALL)
    with pytest.raises(ValueError, match="vocabulary has 6 characters, the method's 5"):
        method.check_encoder(CausalTransformerSpec(vocabulary=6))
    with pytest.raises(
        ValueError, match="LanguageModelling trains on text, but the encoder vit_tiny_patch16_224 is for"
    ):
        method.check_encoder(EncoderSpec())
    images = SimCLR(Foundation(encoder, 16, DigitsViews(), OPTIMIZER))
    with pytest.raises(ValueError, match="SimCLR trains on images, but the encoder causal_transformer is for text"):
        images.check_encoder(SMALL)
