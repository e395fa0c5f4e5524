import copy

import pytest
import torch
from torch import nn

from ssl_methods import TargetNetwork


def filled(value):
    layer = nn.Linear(2, 2)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.fill_(value)
    return layer


def values(target):
    return {tensor.item() for parameter in target.parameters() for tensor in parameter.flatten()}


def test_following_by_hand():
    """0.75 * 1 + 0.25 * 3 = 1.5, then 0.75 * 1.5 + 0.25 * 3 = 1.875."""
    target = TargetNetwork(filled(1.0))
    for expected in (1.5, 1.875):
        target.follow(filled(3.0), momentum=0.75)
        assert values(target) == {expected}


@pytest.mark.parametrize(("momentum", "expected"), [(1.0, 1.0), (0.0, 3.0)])
def test_extreme_momentum(momentum, expected):
    target = TargetNetwork(filled(1.0))
    target.follow(filled(3.0), momentum)
    assert values(target) == {expected}


def test_the_branch_and_the_twins_buffers_do_not_move_when_following():
    branch = nn.BatchNorm1d(3)
    target = TargetNetwork(branch)
    branch(torch.randn(8, 3) + 5)
    online = copy.deepcopy(branch.state_dict())
    target.follow(branch, 0.5)
    assert torch.equal(target.copy.running_mean, torch.zeros(3))
    assert all(torch.equal(tensor, online[name]) for name, tensor in branch.state_dict().items())


def test_the_copy_is_its_own():
    branch = filled(1.0)
    target = TargetNetwork(branch)
    with torch.no_grad():
        branch.weight.fill_(9.0)
    assert values(target) == {1.0}
    assert branch.weight.requires_grad


def test_reset_copies_parameters_and_buffers():
    branch = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    target = TargetNetwork(branch)
    storages = [tensor.data_ptr() for tensor in target.state_dict().values()]
    with torch.no_grad():
        branch[0].weight.add_(1.0)
    branch(torch.randn(8, 3) + 5)
    target(torch.randn(8, 3) - 5)
    target.reset(branch)
    assert all(
        torch.equal(mine, theirs)
        for mine, theirs in zip(target.copy.state_dict().values(), branch.state_dict().values(), strict=True)
    )
    assert [tensor.data_ptr() for tensor in target.state_dict().values()] == storages
    assert target.copy[1].num_batches_tracked == 1


def test_reset_refuses_another_network():
    with pytest.raises(ValueError, match="argument"):
        TargetNetwork(nn.Linear(2, 2)).reset(nn.Linear(2, 2, bias=False))


def test_no_gradients():
    branch = nn.Linear(2, 2)
    target = TargetNetwork(branch)
    inputs = torch.randn(3, 2, requires_grad=True)
    assert not target(inputs).requires_grad
    assert not any(parameter.requires_grad for parameter in target.parameters())
    target.follow(branch, 0.9)
    target.reset(branch)
    assert all(p.grad is None and p.grad_fn is None for p in [*target.parameters(), *branch.parameters()])
    assert inputs.grad is None


def test_batch_norm_uses_the_batch_and_keeps_statistics_of_its_own():
    """Momentum 0.1 of batch norm: a batch of mean 2 and unbiased variance 2 moves 0 and 1 to 0.2 and 1.1."""
    branch = nn.BatchNorm1d(1)
    target = TargetNetwork(branch.eval())
    output = target(torch.tensor([[1.0], [3.0]]))
    torch.testing.assert_close(output, torch.tensor([[-1.0], [1.0]]), rtol=0, atol=1e-4)
    assert target.copy.running_mean.item() == pytest.approx(0.2)
    assert target.copy.running_var.item() == pytest.approx(1.1)
    assert branch.running_mean.item() == 0
    assert branch.num_batches_tracked == 0
