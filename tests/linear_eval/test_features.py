import pytest
import torch

from linear_eval import Features


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
        (torch.zeros(3, 2), torch.tensor([0, -1, -1]), "2 of 3 labels are negative"),
        (torch.tensor([[1.0, float("nan")]]), torch.tensor([0]), "1 of 1 rows"),
    ],
)
def test_features_refuse(x: torch.Tensor, y: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Features(x, y)
