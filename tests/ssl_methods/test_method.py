import copy

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

from layerwise import LayerWise, split_encoder
from ssl_methods import BYOL, DINO, MoCoV3, SimCLR
from ssl_methods.ssl_method import MomentumMethod

D = 32
BLOCK = 12 * D * D + 13 * D
NORM = 2 * D
# Hidden width 16, output width 8; bottlenecks have their default width.
PROJECTORS = {
    "SimSiam": (D * 16 + 32) + (16 * 16 + 32) + 16 * 8,
    "VICReg": (D * 16 + 32) + (16 * 16 + 32) + (16 * 8 + 8),
    "DINO": (D * 16 + 16) + (16 * 16 + 16) + (16 * 256 + 256) + 256 * 8,
} | dict.fromkeys(("SimCLR", "BYOL", "MoCoV3"), (D * 16 + 32) + (16 * 16 + 32) + (16 * 8 + 16))
PREDICTORS = {
    "BYOL": (8 * 16 + 32) + (16 * 8 + 8),
    "MoCoV3": (8 * 16 + 32) + (16 * 8 + 16),
    "SimSiam": (8 * 64 + 2 * 64) + (64 * 8 + 8),
}


def size(parameters):
    return sum(parameter.numel() for parameter in parameters)


def snapshot(module):
    return copy.deepcopy(module.state_dict())


def unchanged(module, before):
    return all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize(("blocks_per_stage", "index"), [(1, 1), (1, 3), (2, 1)])
def test_method_twin_and_optimizer_hold_active_layers_only(method_class, encoder, objective, blocks_per_stage, index):
    model = encoder("vit_avg")
    method = objective(method_class, model)
    stage = LayerWise(blocks_per_stage).stages(4, 4)[index]
    method.attach(*split_encoder(model, stage))
    active = BLOCK * blocks_per_stage + NORM
    projector = PROJECTORS[method_class.__name__]
    trained = active + projector + PREDICTORS.get(method_class.__name__, 0)
    (group,) = method.configure_optimizers().param_groups
    assert size(method.trained()) == size(group["params"]) == trained
    assert size(p for p in method.parameters() if p.requires_grad) == trained
    twin = active + projector if issubclass(method_class, MomentumMethod) else 0
    prefix = size(model.stem.parameters()) + BLOCK * blocks_per_stage * index
    assert size(method.prefix.parameters()) == prefix
    assert size(method.parameters()) == prefix + trained + twin
    if twin:
        assert size(method.target.parameters()) == twin


def test_heads_name_what_is_trained_beside_the_backbone(method_class, encoder, objective):
    method = objective(method_class, encoder())
    name = method_class.__name__
    assert list(method.heads()) == (["projector", "predictor"] if name in PREDICTORS else ["projector"])
    assert size(method.trained()) == size(encoder().parameters()) + PROJECTORS[name] + PREDICTORS.get(name, 0)


def test_a_weight_that_a_head_shares_with_the_backbone_is_trained_once(encoder, objective):
    method = objective(SimCLR, encoder())
    untied = method.trained()
    method.projector.tied = untied[0]
    assert [id(each) for each in method.trained()] == [id(each) for each in untied]


def test_attaching_keeps_the_heads_and_freezes_and_frees_layers(method_class, encoder, objective):
    model = encoder("resnet18")
    method = objective(method_class, model)
    heads = {name: snapshot(head) for name, head in method.heads().items()}
    first, second = LayerWise().stages(4, 4)[:2]
    method.attach(*split_encoder(model, second))
    assert not any(p.requires_grad for p in model.stem.parameters())
    assert not any(module.training for module in method.prefix.modules())
    method.attach(*split_encoder(model, first))
    assert all(p.requires_grad for p in model.stem.parameters())
    assert all(module.training for module in method.backbone.modules())
    assert all(unchanged(head, heads[name]) for name, head in method.heads().items())


def test_training_mode_leaves_the_prefix_alone(method_class, encoder, objective):
    model = encoder("resnet18")
    method = objective(method_class, model)
    method.attach(*split_encoder(model, LayerWise().stages(4, 4)[1]))
    for mode in (False, True):
        assert method.train(mode) is method
        assert not any(module.training for module in method.prefix.modules())
        assert all(module.training == mode for module in method.backbone.modules())
        assert all(module.training == mode for module in method.projector.modules())


def test_a_single_image_cannot_be_contrasted(method_class, encoder, objective, images):
    method = objective(method_class, encoder())
    method.begin_client()
    assert method.training_step(images(1)) is None
    assert method.training_step((images(1), torch.zeros(1))) is None


def test_two_images_are_enough(method_class, encoder, objective, images):
    method = objective(method_class, encoder())
    method.begin_client()
    loss = method.training_step(images(2))
    loss.backward()
    assert loss.shape == ()
    assert torch.isfinite(loss)
    assert all(parameter.grad.isfinite().all() for parameter in method.trained())


@pytest.mark.parametrize("wrap", [tuple, list])
def test_labels_are_ignored(method_class, encoder, objective, images, wrap):
    method = objective(method_class, encoder())
    method.begin_client()
    batches = [images(4), wrap((images(4), torch.arange(4)))]
    losses = []
    for batch in batches:
        method.generator.manual_seed(5)
        losses.append(method.training_step(batch))
    assert torch.equal(*losses)


def test_views_come_from_the_methods_generator_alone(method_class, encoder, objective, images):
    method = objective(method_class, encoder())
    method.begin_client()
    losses = []
    for seed in (5, 5, 6):
        method.generator.manual_seed(seed)
        before = torch.get_rng_state()
        losses.append(method.training_step(images(4)).item())
        assert torch.equal(torch.get_rng_state(), before)
    assert losses[0] == losses[1] != losses[2]


def test_further_loss_terms_see_the_prefix_output_and_are_added(method_class, encoder, objective, images):
    model = encoder()
    method = objective(method_class, model)
    method.attach(*split_encoder(model, LayerWise().stages(4, 4)[1]))
    method.generator.manual_seed(5)
    plain = method.training_step(images(4))
    seen = []

    def term(hidden, output):
        seen.append((hidden, output))
        return torch.tensor(10.0)

    method.loss_terms = [term, lambda hidden, output: 2 * output.loss]
    method.generator.manual_seed(5)
    torch.testing.assert_close(method.training_step(images(4)), 3 * plain + 10)
    (hidden, output), *_ = seen
    assert [view.shape for view in hidden] == [(4, 16, D)] * 2
    assert not any(view.requires_grad for view in hidden)
    assert [view.shape for view in output.projections] == [(4, 8)] * 2
    assert all(view.requires_grad for view in output.projections)


@pytest.mark.parametrize("name", ["vit_avg", pytest.param("vit_token", marks=pytest.mark.slow)])
def test_gradient_steps_lower_the_loss(method_class, encoder, objective, images, name):
    # DINO's targets move away from a loss that begins low, because at first all images agree.
    fixed = {"momentum": 1.0, "centre_momentum": 1.0} if method_class is DINO else {}
    method = objective(method_class, encoder(name), **fixed)
    method.begin_client()
    batch = images(16)

    def loss(seed):
        method.generator.manual_seed(seed)
        return method.training_step(batch)

    before = loss(99).item()
    optimizer = method.configure_optimizers()
    for seed in range(25):
        optimizer.zero_grad()
        loss(seed).backward()
        optimizer.step()
        method.after_step()
    assert loss(99).item() < 0.9 * before


def test_one_batch_under_a_trainer(method_class, encoder, objective, images, trainer):
    method = objective(method_class, encoder())
    before = snapshot(method.backbone)
    trainer(fast_dev_run=True).fit(method, DataLoader(images(8), 4))
    assert not unchanged(method.backbone, before)


def test_steps_under_a_trainer_with_labels_and_an_uneven_last_batch(method_class, encoder, objective, images, trainer):
    """Batches of 4, 4 and 2 images."""
    method = objective(method_class, encoder())
    losses = Losses()
    training = trainer(max_steps=6, callbacks=[losses])
    training.fit(method, DataLoader(TensorDataset(images(10), torch.arange(10)), 4))
    assert training.global_step == 6
    assert len(losses.values) == 6
    assert all(torch.tensor(losses.values).isfinite())


def test_a_last_batch_of_one_image_is_no_step(method_class, encoder, objective, images, trainer):
    """Batches of 4, 4 and 1 images."""
    method = objective(method_class, encoder())
    training = trainer(max_epochs=2)
    training.fit(method, DataLoader(images(9), 4))
    assert training.current_epoch == 2
    assert all(parameter.isfinite().all() for parameter in method.parameters())


def test_a_trainer_repeats_itself_for_the_same_seed(method_class, encoder, objective, images, trainer):
    results = []
    for seed in (1, 1, 2):
        method = objective(method_class, encoder())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            trainer(max_steps=2).fit(method, DataLoader(images(8), 4))
        results.append(snapshot(method.backbone))
    assert unchanged(method.backbone, results[2])
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])
    assert not all(torch.equal(results[0][name], results[2][name]) for name in results[0])


def test_a_stage_under_a_trainer_leaves_frozen_layers_bit_for_bit(method_class, encoder, objective, images, trainer):
    model = encoder("resnet18")
    method = objective(method_class, model)
    method.attach(*split_encoder(model, LayerWise().stages(4, 4)[1]))
    frozen, active = snapshot(method.prefix), snapshot(method.backbone)
    trainer(max_steps=2).fit(method, DataLoader(images(8, channels=3, size=32), 4))
    assert unchanged(method.prefix, frozen)
    assert not unchanged(method.backbone, active)


def test_the_target_starts_anew_from_the_online_branch(encoder, objective):
    method = objective(MoCoV3, encoder())
    method.begin_client()
    twin = method.target
    with torch.no_grad():
        for parameter in method.trained():
            parameter.add_(1.0)
    method.begin_client()
    assert method.target is twin
    assert unchanged(method.online(), snapshot(twin.copy))


@pytest.mark.parametrize("momentum_method", [BYOL, MoCoV3])
def test_the_target_follows_after_each_step_of_a_trainer(momentum_method, encoder, objective, images, trainer):
    method = objective(momentum_method, encoder(), momentum=0.75)
    before = [parameter.detach().clone() for parameter in method.online().parameters()]
    trainer(fast_dev_run=True).fit(method, DataLoader(images(4), 4))
    after = list(method.online().parameters())
    for target, old, new in zip(method.target.parameters(), before, after, strict=True):
        torch.testing.assert_close(target, 0.75 * old + 0.25 * new.detach())


class Losses(pl.Callback):
    def __init__(self):
        self.values = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.values.append(outputs["loss"].item())
