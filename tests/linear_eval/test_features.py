import pytest
import torch
from torch import nn

from linear_eval import Features, extract_features


def test_features_report_their_size_and_select_rows() -> None:
    features = Features(torch.arange(6.0).reshape(3, 2), torch.tensor([0, 1, 2]))
    assert len(features) == 3
    assert features.dim == 2
    part = features.select(torch.tensor([2, 0]))
    assert part.x.tolist() == [[4.0, 5.0], [0.0, 1.0]]
    assert part.y.tolist() == [2, 0]


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.zeros(3), torch.zeros(3, dtype=torch.long), "non-empty float32"),
        (torch.zeros(3, 2).double(), torch.zeros(3, dtype=torch.long), "float64"),
        (torch.zeros(0, 2), torch.zeros(0, dtype=torch.long), "non-empty"),
        (torch.zeros(3, 2), torch.zeros(2, dtype=torch.long), r"int64 \(3,\)"),
        (torch.zeros(3, 2), torch.zeros(3), "float32"),
        (torch.zeros(3, 2), torch.zeros(3, dtype=torch.long, device="meta"), "share a device"),
        (torch.zeros(3, 2), torch.tensor([0, -1, -1]), "2 of 3 labels are negative"),
        (torch.tensor([[1.0, float("nan")]]), torch.tensor([0]), "1 of 1 rows"),
    ],
)
def test_features_refuse(x: torch.Tensor, y: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Features(x, y)


def test_extraction_keeps_order_uses_evaluation_mode_and_restores_each_mode() -> None:
    encoder = nn.Sequential(nn.Dropout(0.9), nn.BatchNorm1d(2))
    encoder.train()
    encoder[1].eval()
    inputs = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 0, 1], dtype=torch.int32)
    features = extract_features(encoder, zip(inputs.split(2), labels.split(2), strict=True))
    assert torch.allclose(features.x, inputs, atol=1e-4)  # dropout off, running statistics still 0 and 1
    assert features.y.tolist() == labels.tolist()
    assert not features.x.requires_grad
    assert [encoder.training, encoder[0].training, encoder[1].training] == [True, True, False]


def test_extraction_takes_any_callable_and_gives_float32() -> None:
    features = extract_features(lambda x: x.flatten(1).half(), [(torch.ones(2, 1, 2, 2), torch.tensor([0, 1]))])
    assert features.x.dtype == torch.float32
    assert features.dim == 4


@pytest.mark.parametrize(
    ("inputs", "labels", "message"),
    [
        (torch.zeros(2, 3), torch.tensor([0, -1]), "filter the data set"),
        (torch.zeros(2, 3), torch.tensor([0.0, 1.0]), "integers"),
        (torch.zeros(2, 3), torch.tensor([[0], [1]]), r"\(2, 1\)"),
        (torch.zeros(2, 3, 4), torch.tensor([0, 1]), r"pooled features \(2, D\)"),
    ],
)
def test_extraction_refuses(inputs: torch.Tensor, labels: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        extract_features(nn.Identity(), [(inputs, labels)])


def test_extraction_refuses_no_batches_and_restores_the_mode_after_an_error() -> None:
    encoder = nn.Identity().train()
    with pytest.raises(ValueError, match="at least one labelled batch"):
        extract_features(encoder, [])
    assert encoder.training
