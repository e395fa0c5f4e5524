import pytest
import torch
from torch import nn

from layerwise import LayerWise, StepCost, StepMeter, split_encoder

FLOAT = 4  # bytes


def measure(modules, step):
    with StepMeter(modules.parameters()) as meter:
        step()
    return meter.cost()


def backward(module, inputs):
    return measure(module, lambda: module(inputs).sum().backward())


@pytest.mark.parametrize(("input_grad", "products"), [(False, 2), (True, 3)])
def test_linear(input_grad, products):
    """Forward, gradient of the weight, and gradient of the input only if it is asked for."""
    cost = backward(nn.Linear(5, 7), torch.randn(4, 5, requires_grad=input_grad))
    assert cost.macs == products * 4 * 5 * 7


def test_linear_over_tokens():
    assert backward(nn.Linear(5, 7), torch.randn(2, 3, 5, requires_grad=True)).macs == 3 * (2 * 3) * 5 * 7


@pytest.mark.parametrize(("input_grad", "products"), [(False, 2), (True, 3)])
def test_convolution(input_grad, products):
    """A stride of 2 on 9 x 9 pixels gives 5 x 5 outputs."""
    layer = nn.Conv2d(3, 6, kernel_size=3, stride=2, padding=1)
    cost = backward(layer, torch.randn(2, 3, 9, 9, requires_grad=input_grad))
    assert cost.macs == products * 2 * (5 * 5) * (3 * 3) * 3 * 6


def test_forward_only_layers_count_once_and_keep_nothing():
    layer = nn.Linear(5, 7)

    def forward():
        with torch.no_grad():
            layer(torch.randn(4, 5))

    assert measure(layer, forward) == StepCost(macs=4 * 5 * 7, activation_bytes=0)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("input_grad", [True, False])
def test_vit_block(vit, fused, input_grad):
    """Linear layers 12 D^2 a token, attention 2 T^2 D an image, backward twice as much.

    The input's gradient is needed either way, by the norm in front. The fused kernel has no score matrix left
    in backward and makes it a second time: five products instead of four.
    """
    B, T, D = 3, 16, 32
    block = vit.blocks[0]
    block.attn.fused_attn = fused
    linear, product = B * T * 12 * D * D, B * T * T * D
    cost = backward(block, torch.randn(B, T, D, requires_grad=input_grad))
    assert cost.macs == 3 * linear + (2 + (5 if fused else 4)) * product


@pytest.mark.parametrize("fused", [True, False])
def test_vit_block_forward(vit, fused):
    B, T, D = 3, 16, 32
    block = vit.blocks[0].requires_grad_(False)
    block.attn.fused_attn = fused
    cost = measure(block, lambda: block(torch.randn(B, T, D)))
    assert cost == StepCost(macs=B * T * 12 * D * D + 2 * B * T * T * D, activation_bytes=0)


def test_layer_wise_step(vit, images):
    """Stem and two frozen blocks run forward only, the third block forward and backward."""
    B, T, D = 2, 16, 32
    prefix, active = split_encoder(vit, LayerWise().stages(4, 4)[2])
    batch = images(vit.spec, B)

    def step():
        with torch.no_grad():
            hidden = prefix(batch)
        active(hidden).sum().backward()

    linear, product = B * T * 12 * D * D, B * T * T * D
    stem = B * T * (4 * 4) * D
    assert measure(vit, step).macs == stem + 2 * (linear + 2 * product) + (3 * linear + 7 * product)


def test_activations_of_linear_and_gelu():
    """Kept: the input for the first weight, the sum for GELU, its output for the second weight."""
    B, D, H = 4, 5, 7
    chain = nn.Sequential(nn.Linear(D, H), nn.GELU(), nn.Linear(H, D))
    assert backward(chain, torch.randn(B, D)).activation_bytes == FLOAT * B * (D + H + H)


def test_parameters_are_no_activations():
    """Without weight gradients only the weights themselves are kept, for the input's gradient."""
    chain = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 5)).requires_grad_(False)
    inputs = torch.randn(4, 5, requires_grad=True)
    with StepMeter([]) as everything:
        chain(inputs).sum().backward()
    assert everything.cost().activation_bytes == FLOAT * (2 * 5 * 7)
    assert backward(chain, inputs).activation_bytes == 0


def test_a_storage_that_two_operations_keep_counts_once():
    """ReLU keeps its own output, and the linear layer behind keeps the same tensor as its input."""
    B, D, H = 4, 5, 7
    chain = nn.Sequential(nn.Linear(D, H), nn.ReLU(), nn.Linear(H, D))
    assert backward(chain, torch.randn(B, D)).activation_bytes == FLOAT * B * (D + H)


def test_views_count_as_the_whole_storage_once():
    rows = torch.randn(6, 5)
    layers = nn.ModuleList([nn.Linear(5, 2), nn.Linear(5, 3)])

    def step():
        (layers[0](rows[:2]).sum() + layers[1](rows[3:]).sum()).backward()

    assert measure(layers, step).activation_bytes == FLOAT * 6 * 5


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_counting_changes_neither_loss_nor_gradients(kind, request, images):
    encoder = request.getfixturevalue(kind)
    batch = images(encoder.spec, 3)
    results = []
    for counted in (False, True):
        encoder.zero_grad()
        if counted:
            with StepMeter(encoder.parameters()):
                loss = encoder(batch).square().mean()
                loss.backward()
        else:
            loss = encoder(batch).square().mean()
            loss.backward()
        used = [p.grad.clone() for p in encoder.parameters() if p.grad is not None]
        results.append([loss.detach(), *used])
    assert len(results[0]) == len(results[1]) > 10
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_nothing_is_counted_outside():
    layer = nn.Linear(5, 7)
    meter = StepMeter(layer.parameters())
    layer(torch.randn(4, 5)).sum().backward()
    with meter:
        pass
    layer(torch.randn(4, 5)).sum().backward()
    assert meter.cost() == StepCost(0, 0)


def test_an_error_inside_passes_through_and_ends_the_count():
    layer = nn.Linear(5, 7)
    meter = StepMeter(layer.parameters())
    with pytest.raises(RuntimeError, match="shapes"), meter:
        layer(layer(torch.randn(4, 5)))
    layer(torch.randn(4, 5))
    assert meter.cost().macs == 4 * 5 * 7
