"""Cross-entropy, compared with plain PyTorch."""

import copy
import functools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from layerwise import LayerWise, split_encoder
from ssl_methods import DigitsViews, Foundation, SimCLR, Supervised, TwoViews


@pytest.fixture
def supervised(encoder):
    optimizer = functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9)

    def build(name="vit_avg", augment=None, **settings):
        backbone = encoder(name)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return Supervised(
                Foundation(backbone, backbone.feature_dim, augment or TwoViews(flip=0.5), optimizer), **settings
            )

    return build


def plain(images):
    """Views without chance: the images themselves, normalised."""
    return TwoViews().plain(images)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_loss_by_hand(supervised, images, smoothing):
    method = supervised(augment=TwoViews(), num_classes=4, label_smoothing=smoothing)
    labels = torch.tensor([0, 3, 1, 1])
    inputs = method.inputs(images(4), labels)
    logits = method.classifier(method.backbone(plain(images(4)))).double()
    targets = F.one_hot(labels, 4) * (1 - smoothing) + smoothing / 4
    expected = -(targets * logits.log_softmax(1)).sum(1).mean()
    assert method.loss_of(inputs).item() == pytest.approx(expected.item(), abs=1e-6)


def test_the_view_is_the_first_of_the_two(supervised, images):
    method = supervised(augment=DigitsViews())
    method.generator.manual_seed(3)
    view, labels = method.inputs(images(5), torch.arange(5))
    first, second = DigitsViews()(images(5), torch.Generator().manual_seed(3))
    assert torch.equal(view, first)
    assert not torch.equal(view, second)
    assert torch.equal(labels, torch.arange(5))


def test_a_few_steps_equal_a_plain_loop(supervised, images):
    method, pixels, labels = supervised(), images(12), torch.arange(12) % 10
    backbone, classifier = copy.deepcopy(method.backbone), copy.deepcopy(method.classifier)
    mine = method.configure_optimizers()
    own = torch.optim.SGD([*backbone.parameters(), *classifier.parameters()], lr=0.05, momentum=0.9)
    method.generator.manual_seed(1)
    generator = torch.Generator().manual_seed(1)
    for step in range(4):
        batch = torch.arange(4) + 3 * step % 9
        method.training_step((pixels[batch], labels[batch])).backward()
        view, _ = TwoViews(flip=0.5)(pixels[batch], torch.Generator().manual_seed(99))
        view = TwoViews(flip=0.5).first(pixels[batch], generator)
        F.cross_entropy(classifier(backbone(view)), labels[batch]).backward()
        for optimizer in (mine, own):
            optimizer.step()
            optimizer.zero_grad()
    pairs = zip(method.trained(), [*backbone.parameters(), *classifier.parameters()], strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_lightning_trains_it_and_the_loss_falls(supervised, images, trainer):
    labels = torch.arange(32) % 4
    pixels = (images(32).float() * 0.2 + 50 * labels[:, None, None, None]).to(torch.uint8)
    method = supervised(augment=TwoViews(), num_classes=4)
    data = DataLoader(TensorDataset(pixels, labels), batch_size=16)
    before = F.cross_entropy(method.classify(method.backbone(plain(pixels))), labels)
    trainer(max_epochs=15).fit(method, data)
    after = F.cross_entropy(method.classify(method.backbone(plain(pixels))), labels)
    assert after < before - 0.2


def test_only_the_active_part_and_the_classifier_are_trained(supervised, images, encoder):
    method = supervised()
    stages = LayerWise().stages(4, 4)
    method.attach(*split_encoder(method.backbone, stages[2]))
    assert not any(parameter.requires_grad for parameter in method.prefix.parameters())
    method.training_step((images(4), torch.arange(4))).backward()
    assert all(parameter.grad is not None for parameter in method.trained())
    assert all(parameter.grad is None for parameter in method.prefix.parameters())
    assert list(method.heads()) == ["classifier"]


def test_further_terms_get_prefix_outputs_and_logits(supervised, images):
    method, seen = supervised(), []
    method.loss_terms = [lambda hidden, output: seen.append((hidden, output)) or torch.tensor(2.5)]
    inputs = method.inputs(images(4), torch.arange(4))
    loss = method.loss_of(inputs)
    (hidden, output), *_ = seen
    assert torch.equal(hidden[0], inputs[0])
    assert output.projections[0].shape == (4, 10)
    assert loss.item() == pytest.approx(output.loss.item() + 2.5)


def test_classes_are_scored_by_the_classifier_alone(supervised, objective, encoder):
    method = supervised(num_classes=6)
    features = torch.randn(3, method.feature_dim, generator=torch.Generator().manual_seed(0))
    assert torch.equal(method.classify(features), F.linear(features, method.classifier.weight, method.classifier.bias))
    assert objective(SimCLR, encoder()).classify(features) is None


def test_example_inputs_have_the_shapes_of_real_ones(supervised, images):
    method = supervised()
    real = method.inputs(images(5), torch.arange(5))
    example = method.example_inputs((5, 1, 16, 16))
    assert [(t.shape, t.dtype) for t in example] == [(t.shape, t.dtype) for t in real]
    assert math.isfinite(method.loss_of((real[0], example[1])).item())


def test_labels_are_checked(supervised):
    method = supervised(num_classes=3)
    for labels in ([0, 1, 2], [2], []):
        method.check_labels(torch.tensor(labels, dtype=torch.long))
    with pytest.raises(ValueError, match="needs a label for every image; this data set has unlabelled ones"):
        method.check_labels(torch.tensor([0, -1, 2]))
    with pytest.raises(ValueError, match=r"labels up to 7: set model\.method\.num_classes to at least 8, it is 3"):
        method.check_labels(torch.tensor([0, 7, 2]))


def test_self_supervision_takes_any_labels(objective, encoder):
    objective(SimCLR, encoder()).check_labels(torch.tensor([-1, 100]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_classes": 1}, "num_classes must be at least 2, got 1"),
        ({"label_smoothing": 1.0}, "label_smoothing must be at least 0 and below 1, got 1.0"),
        ({"label_smoothing": -0.1}, "label_smoothing must be at least 0 and below 1, got -0.1"),
    ],
)
def test_settings_are_checked(supervised, settings, message):
    with pytest.raises(ValueError, match=message):
        supervised(**settings)


def test_heads_start_by_seed(supervised):
    assert torch.equal(supervised().classifier.weight, supervised().classifier.weight)
    assert isinstance(supervised().classifier, nn.Linear)
