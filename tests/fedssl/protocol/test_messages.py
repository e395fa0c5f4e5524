"""What travels."""

import pytest
import torch

from fedssl.protocol.messages import content_id, flatten, num_bytes

PARTS = {
    "stem": {"w": torch.zeros(2, 3), "n": torch.zeros((), dtype=torch.int64)},
    "head.projector": {"w": torch.zeros(5, dtype=torch.bfloat16)},
}


def test_flatten_names_part_and_tensor() -> None:
    flat = flatten(PARTS)
    assert list(flat) == ["stem/w", "stem/n", "head.projector/w"]
    assert flat["head.projector/w"] is PARTS["head.projector"]["w"]
    assert flatten({}) == {}


def test_num_bytes_by_hand() -> None:
    assert num_bytes(PARTS) == 6 * 4 + 8 + 5 * 2
    assert num_bytes({"empty": {}}) == 0


def test_content_id_is_that_of_equal_tensors_on_any_machine() -> None:
    tensors = {"w": torch.arange(6.0).reshape(2, 3), "n": torch.tensor(3)}
    same = {"n": torch.tensor(3), "w": torch.arange(6.0).reshape(2, 3).clone()}
    assert content_id(tensors) == content_id(same) == "f62062f52a631cfe07ec089ffde934bc"
    transposed = {"w": torch.arange(6.0).reshape(2, 3).T.contiguous().T, "n": torch.tensor(3)}
    assert not transposed["w"].is_contiguous()
    assert content_id(transposed) == content_id(tensors)
    assert content_id({"w": torch.ones(2, requires_grad=True)}) == content_id({"w": torch.ones(2)})


@pytest.mark.parametrize(
    "other",
    [
        {"w": torch.tensor([1.0, 2.0, 3.0000002])},
        {"w": torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)},
        {"w": torch.tensor([1.0, 2.0, 3.0]).view(torch.int32)},
        {"w": torch.tensor([[1.0, 2.0, 3.0]])},
        {"v": torch.tensor([1.0, 2.0, 3.0])},
        {"w": torch.tensor([1.0, 2.0, 3.0]), "v": torch.zeros(0)},
        {"w": torch.tensor([2.0, 1.0, 3.0])},
        {},
    ],
    ids=["value", "dtype", "same bytes", "shape", "name", "one more", "order", "none"],
)
def test_content_id_differs_on_any_change(other: dict[str, torch.Tensor]) -> None:
    assert content_id(other) != content_id({"w": torch.tensor([1.0, 2.0, 3.0])})


def test_content_id_does_not_confuse_two_tensors_with_one() -> None:
    together = {"a": torch.arange(4.0)}
    apart = {"a": torch.arange(2.0), "b": torch.arange(2.0, 4.0)}
    assert content_id(together) != content_id(apart)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int64, torch.bool, torch.uint8])
def test_content_id_takes_any_dtype(dtype: torch.dtype) -> None:
    zeros, ones = torch.zeros(3, dtype=dtype), torch.ones(3, dtype=dtype)
    assert content_id({"w": zeros}) != content_id({"w": ones})
    assert content_id({"w": ones}) == content_id({"w": torch.ones(3, dtype=dtype)})
