"""Methods of any number of views and targets, with and without a projector."""

import copy
import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import SGD

from layerwise import LayerWise, split_encoder
from ssl_methods import Foundation, Method, SSLMethod, StepOutput, TwoViews
from ssl_methods.alignment import GlobalAlignment


class Agreement(SSLMethod):
    """The mean distance of three views' features to their centre."""

    num_views = 3

    def heads(self):
        return {}

    def step(self, hidden):
        features = tuple(F.normalize(self.backbone(view)) for view in hidden)
        return StepOutput(torch.stack(features).var(dim=0).mean(), features)


class Brightness(Method):
    """Regression of two numbers of an image from one view."""

    def __init__(self, foundation):
        super().__init__(foundation)
        self.line = nn.Linear(self.feature_dim, 1)

    def heads(self):
        return {"line": self.line}

    def inputs(self, images, labels):
        brightness = images.float().mean(dim=(1, 2, 3)) / 255
        return (*super().inputs(images, labels), brightness, labels)

    def step(self, hidden):
        view, brightness, labels = hidden
        guess = self.line(self.backbone(view))
        return StepOutput(F.mse_loss(guess.squeeze(1), brightness + labels), (guess,))


class Marked(TwoViews):
    """Views that are their own number."""

    def __call__(self, images, generator):
        return torch.full((2,), 1.0), torch.full((2,), 2.0)

    def first(self, images, generator):
        return torch.full((2,), 1.0)


def build(method, encoder, augment):
    return method(Foundation(encoder, encoder.feature_dim, augment, functools.partial(SGD, lr=0.1)))


@pytest.mark.parametrize(("number", "kinds"), [(1, [1]), (2, [1, 2]), (3, [1, 2, 1]), (4, [1, 2, 1, 2])])
def test_views_are_of_both_kinds_in_turn(number, kinds, encoder, images):
    method = build(Agreement, encoder(), Marked())
    method.num_views = number
    assert [view[0].item() for view in method.inputs(images(2), torch.zeros(2))] == kinds
    assert [view.shape for view in method.example_inputs((2, 5))] == [(2, 5)] * number


@pytest.mark.parametrize("method_class", [Agreement, Brightness])
def test_the_frozen_prefix_changes_no_gradient(method_class, encoder, images):
    whole = build(method_class, encoder(), TwoViews(flip=0.5))
    stage = LayerWise().stages(4, 4)[-1]
    parts = copy.deepcopy(whole)
    parts.attach(*split_encoder(parts.backbone, stage))
    losses = []
    for method in (whole, parts):
        method.generator.manual_seed(0)
        losses.append(method.training_step((images(4), torch.tensor([0, 1, 2, 3]))))
        losses[-1].backward()
    assert losses[0].item() == pytest.approx(losses[1].item())
    assert len(parts.trained()) > 10
    active = split_encoder(whole.backbone, stage)[1]
    for own, theirs in zip(parts.backbone.parameters(), active.parameters(), strict=True):
        assert torch.allclose(own.grad, theirs.grad, atol=1e-6)


def test_alignment_compares_the_features_of_a_method_without_projector(encoder, images):
    method = build(Agreement, encoder(), TwoViews(flip=0.5))
    alignment = GlobalAlignment(weight=1.0)
    alignment.begin_stage(method)
    alignment.begin_client(method, None)
    inputs = method.inputs(images(4), torch.zeros(4))
    alone = method.loss_of(inputs)
    method.loss_terms.append(alignment)
    expected = torch.stack([alignment.loss(view, F.normalize(method.backbone(view))) for view in inputs]).mean()
    assert (method.loss_of(inputs) - alone).item() == pytest.approx(expected.item(), abs=1e-5)
