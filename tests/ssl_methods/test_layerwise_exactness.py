"""Running the frozen prefix once for all branches gives what whole networks in every branch give.

The yardstick is written here without any of the product's shortcuts: the full encoder in the online branch,
a full copy of it in the target branch, and each loss from its definition.
"""

import copy
import functools

import pytest
import torch
from torch import nn

from layerwise import LayerWise, Progressive, split_encoder
from ssl_methods import BYOL, DINO, MoCoV3, SimCLR, SimSiam, TwoViews, VICReg
from ssl_methods.ssl_method import MomentumMethod

MOMENTUM = 0.9
SETTINGS = {
    SimCLR: {"temperature": 0.2},
    BYOL: {"momentum": MOMENTUM},
    MoCoV3: {"temperature": 0.1, "momentum": MOMENTUM},
    SimSiam: {},
    VICReg: {"invariance": 3.0, "variance": 2.0, "covariance": 0.5},
    DINO: {"temperature": 0.3, "target_temperature": 0.1, "momentum": MOMENTUM, "centre_momentum": 0.7},
}
SGD = functools.partial(torch.optim.SGD, lr=0.01, momentum=0.9)
close = functools.partial(torch.testing.assert_close, rtol=1e-8, atol=1e-11)


class DoubleViews(TwoViews):
    """Views in the precision of the comparison."""

    def __call__(self, images, generator):
        first, second = super().__call__(images, generator)
        return first.double(), second.double()


AUGMENT = DoubleViews(crop_scale=(0.5, 1.0), flip=0.5, noise=0.05)


class FullBranch(nn.Module):
    """The whole encoder up to the stage's depth, and the projector."""

    def __init__(self, encoder, projector, stage):
        super().__init__()
        self.encoder, self.projector, self.stage = encoder, projector, stage
        self.train()
        for name in stage.frozen_parts():
            encoder.parts()[name].eval().requires_grad_(False)

    def forward(self, images):
        hidden = self.encoder.stem(images)
        for block in list(self.encoder.blocks)[: self.stage.depth]:
            hidden = block(hidden)
        return self.projector(self.encoder.reshape[self.stage.depth - 1](self.encoder.tail(hidden)))


def normalize(vectors):
    return vectors / vectors.square().sum(1, keepdim=True).sqrt()


def byol_loss(predictions, targets):
    """Mean over both directions of the squared distance of unit vectors."""
    distances = [(normalize(p) - normalize(t)).square().sum(1) for p, t in zip(predictions, targets[::-1], strict=True)]
    return torch.cat(distances).mean()


def moco_loss(predictions, targets, temperature):
    total = 0
    for prediction, target in zip(predictions, targets[::-1], strict=True):
        similarities = normalize(prediction) @ normalize(target).T / temperature
        total = total + (torch.logsumexp(similarities, 1) - similarities.diagonal()).mean()
    return total


def simsiam_loss(predictions, targets):
    pairs = zip(predictions, targets[::-1], strict=True)
    return -sum((normalize(p) * normalize(t)).sum(1).mean() for p, t in pairs) / 2


def vicreg_loss(projections, invariance, variance, covariance):
    loss = invariance * (projections[0] - projections[1]).square().mean()
    for each in projections:
        deviations = each - each.mean(0)
        matrix = deviations.T @ deviations / (len(each) - 1)
        loss = loss + variance / 2 * (1 - (matrix.diagonal() + 1e-4).sqrt()).clamp(min=0).mean()
        loss = loss + covariance * (matrix - matrix.diagonal().diag()).square().sum() / each.shape[1]
    return loss


def dino_loss(projections, targets, centre, temperature, target_temperature):
    total = 0
    for projection, target in zip(projections, targets[::-1], strict=True):
        wanted = ((target - centre) / target_temperature).softmax(1)
        total = total - (wanted * (projection / temperature).log_softmax(1)).sum(1).mean()
    return total / 2


def simclr_loss(projections, temperature):
    everything = normalize(torch.cat(projections))
    similarities = everything @ everything.T / temperature
    half = len(everything) // 2
    positives = torch.cat([similarities.diagonal(half), similarities.diagonal(-half)])
    others = similarities.masked_fill(torch.eye(2 * half, dtype=torch.bool), -torch.inf)
    return (torch.logsumexp(others, 1) - positives).mean()


class Naive:
    """The same training with whole networks in both branches."""

    def __init__(self, method, encoder, stage):
        self.kind = type(method)
        heads = copy.deepcopy(method.heads())
        self.online = FullBranch(copy.deepcopy(encoder), heads["projector"], stage)
        self.predictor = heads.get("predictor")
        self.target = copy.deepcopy(self.online).requires_grad_(False)
        self.centre = 0.0
        parameters = [*self.online.parameters(), *(self.predictor.parameters() if self.predictor else [])]
        # Blocks beyond the stage's depth get no gradient, so the optimizer passes them over.
        self.optimizer = SGD([p for p in parameters if p.requires_grad])

    def loss(self, views):
        settings = {name: value for name, value in SETTINGS[self.kind].items() if not name.endswith("momentum")}
        projections = [self.online(view) for view in views]
        if self.kind in (SimCLR, VICReg):
            return (simclr_loss if self.kind is SimCLR else vicreg_loss)(projections, **settings)
        predictions = [self.predictor(projection) for projection in projections] if self.predictor else projections
        if self.kind is SimSiam:
            return simsiam_loss(predictions, [projection.detach() for projection in projections])
        with torch.no_grad():
            targets = [self.target(view) for view in views]
        if self.kind is DINO:
            loss = dino_loss(predictions, targets, self.centre, **settings)
            kept = SETTINGS[DINO]["centre_momentum"]
            self.centre = kept * self.centre + (1 - kept) * torch.cat(targets).mean(0)
            return loss
        return (byol_loss if self.kind is BYOL else moco_loss)(predictions, targets, **settings)

    def step(self, views):
        self.optimizer.zero_grad()
        loss = self.loss(views)
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            for target, online in zip(self.target.parameters(), self.online.parameters(), strict=True):
                target.copy_(MOMENTUM * target + (1 - MOMENTUM) * online)
        return loss.detach()


class Pair:
    """A method on a stage of an encoder, and its naive counterpart with the same weights."""

    def __init__(self, method_class, encoder, objective, stage):
        self.encoder, self.stage = encoder.double(), stage
        settings = SETTINGS[method_class]
        self.method = objective(method_class, self.encoder, AUGMENT, SGD, **settings).double()
        self._randomize_norms()
        self.method.attach(*split_encoder(self.encoder, stage))
        self.naive = Naive(self.method, self.encoder, stage)
        self.channels, self.size = encoder.spec.in_channels, encoder.spec.image_size

    def _randomize_norms(self):
        """Gives norms weights away from 0 and 1, and batch norms statistics unlike any batch's."""
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for tensor in [*self.encoder.parameters(), *self.encoder.buffers()]:
                if tensor.is_floating_point() and tensor.ndim == 1:
                    tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)

    def views(self, batch, seed):
        self.method.generator.manual_seed(seed)
        return AUGMENT(batch, torch.Generator().manual_seed(seed))

    def modules(self):
        """Trained modules by name: the method's and the naive counterpart's."""
        own, full = self.encoder.parts(), self.naive.online.encoder.parts()
        pairs = {name: (own[name], full[name]) for name in self.stage.trained_parts()}
        pairs["projector"] = (self.method.projector, self.naive.online.projector)
        if self.naive.predictor is not None:
            pairs["predictor"] = (self.method.predictor, self.naive.predictor)
        return pairs


CASES = {
    "layer_wise_2_vit_token": ("vit_token", LayerWise(), 1),
    "layer_wise_2_vit_avg": ("vit_avg", LayerWise(), 1),
    "layer_wise_2_resnet18": ("resnet18", LayerWise(), 1),
    "layer_wise_1_vit_token": ("vit_token", LayerWise(), 0),
    "layer_wise_4_vit_token": ("vit_token", LayerWise(), 3),
    "two_blocks_a_stage_vit_avg": ("vit_avg", LayerWise(2), 1),
    "progressive_2_vit_avg": ("vit_avg", Progressive(), 1),
}


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def pair(request, method_class, encoder, objective):
    name, scheme, index = request.param
    return Pair(method_class, encoder(name), objective, scheme.stages(4, 4)[index])


def test_loss_and_gradients(pair, images):
    batch = images(6, pair.channels, pair.size)
    views = pair.views(batch, seed=11)
    loss, expected = pair.method.training_step(batch), pair.naive.loss(views)
    loss.backward()
    expected.backward()
    close(loss, expected)
    for own, full in pair.modules().values():
        for a, b in zip(own.parameters(), full.parameters(), strict=True):
            assert a.grad is not None
            close(a.grad, b.grad)
    assert all(parameter.grad is None for parameter in pair.method.prefix.parameters())


def test_several_steps_with_a_moving_target(pair, images):
    before = {name: copy.deepcopy(part.state_dict()) for name, part in pair.encoder.parts().items()}
    optimizer = pair.method.configure_optimizers()
    for seed in range(3):
        batch = images(6, pair.channels, pair.size, seed)
        views = pair.views(batch, seed)
        optimizer.zero_grad()
        loss = pair.method.training_step(batch)
        loss.backward()
        optimizer.step()
        pair.method.after_step()
        close(loss.detach(), pair.naive.step(views))
    for own, full in pair.modules().values():
        close(own.state_dict(), full.state_dict())
    if isinstance(pair.method, MomentumMethod):
        _, full_active = split_encoder(pair.naive.target.encoder, pair.stage)
        backbone, projector = pair.method.target.copy
        close(backbone.state_dict(), full_active.state_dict())
        close(projector.state_dict(), pair.naive.target.projector.state_dict())
    for name, part in pair.encoder.parts().items():
        same = [torch.equal(tensor, before[name][key]) for key, tensor in part.state_dict().items()]
        assert all(same) if name not in pair.stage.trained_parts() else not all(same) or not same, name


def test_the_prefix_runs_once_for_each_view(method_class, encoder, objective, images):
    pair = Pair(method_class, encoder("vit_avg"), objective, LayerWise().stages(4, 4)[1])
    calls = {"stem": 0, "block.0": 0, "block.1": 0}
    for name in calls:
        pair.encoder.parts()[name].register_forward_hook(lambda *_, name=name: calls.update({name: calls[name] + 1}))
    pair.method.training_step(images(4))
    assert calls == {"stem": 2, "block.0": 2, "block.1": 2}


def test_the_next_stage_starts_with_a_target_equal_to_the_online_branch(method_class, encoder, objective, images):
    model = encoder("vit_avg")
    method = objective(method_class, model)
    for stage in LayerWise().stages(4, 4):
        method.attach(*split_encoder(model, stage))
        if issubclass(method_class, MomentumMethod):
            close(method.target.copy.state_dict(), method.online().state_dict(), rtol=0, atol=0)
        optimizer = method.configure_optimizers()
        method.training_step(images(4)).backward()
        optimizer.step()
        method.after_step()
