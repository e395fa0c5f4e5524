"""The text encoder: what it may see, how large it is, and that it is staged like the others."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from layerwise import CausalTransformerSpec, EncoderSpec, LayerWise, Stage, build_encoder, paper_cost, split_encoder
from layerwise.paper_cost import part_costs

SMALL = CausalTransformerSpec(vocabulary=11, context=6, depth=3, width=16, heads=2)


def block_parameters(width: int) -> int:
    """Two norms, four attention matrices, an MLP four times as wide, all with biases."""
    return 12 * width**2 + 13 * width


@pytest.fixture
def texts():
    return torch.randint(0, 11, (4, 6), generator=torch.Generator().manual_seed(0))


def test_later_characters_change_nothing_before_them(texts) -> None:
    encoder = build_encoder(SMALL, seed=0)
    before = encoder(texts)
    for position in range(6):
        changed = texts.clone()
        changed[:, position] = (changed[:, position] + 1) % 11
        after = encoder(changed)
        assert torch.equal(after[:, :position], before[:, :position])
        assert not torch.isclose(after[:, position], before[:, position]).all()


def test_every_position_sees_the_first_character(texts) -> None:
    encoder = build_encoder(SMALL, seed=0)
    changed = texts.clone()
    changed[:, 0] = (changed[:, 0] + 1) % 11
    assert ((encoder(changed) - encoder(texts)).abs().amax(dim=(0, 2)) > 1e-6).all()


def test_shorter_texts_are_read_from_the_first_position_on(texts) -> None:
    encoder = build_encoder(SMALL, seed=0)
    assert torch.allclose(encoder(texts[:, :3]), encoder(texts)[:, :3], atol=1e-6)


def test_equal_seeds_give_equal_weights_and_leave_the_global_generator_alone() -> None:
    state = torch.random.get_rng_state()
    first, second, other = (build_encoder(SMALL, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name])
    assert not torch.equal(first.stem.characters.weight, other.stem.characters.weight)


@pytest.mark.parametrize("depth", [3, 6, 9, 12])
def test_the_family_has_equal_blocks_for_text_and_images(depth: int) -> None:
    options = {"patch_size": 4, "embed_dim": 256, "num_heads": 8, "depth": depth}
    for spec in (CausalTransformerSpec(depth=depth), EncoderSpec("vit_tiny_patch16_224", 32, 3, options=options)):
        encoder = build_encoder(spec, seed=0)
        assert len(encoder.blocks) == depth
        assert {sum(p.numel() for p in block.parameters()) for block in encoder.blocks} == {block_parameters(256)}
        assert {block.attn.num_heads for block in encoder.blocks} == {8}


def test_a_stage_is_split_as_that_of_an_image_encoder(texts) -> None:
    encoder = build_encoder(SMALL, seed=0)
    stage = Stage(1, (0, 1), (1,), False, 1)
    prefix, active = split_encoder(encoder, stage)
    encoder.depth = 2
    assert torch.equal(active(prefix(texts)), encoder(texts))


def test_costs_of_the_paper_count_every_character() -> None:
    width, context = 16, 6
    encoder = build_encoder(SMALL, seed=0)
    parts = part_costs(encoder)
    assert parts["stem"].macs == 0
    attention = 4 * context * width**2 + 2 * context**2 * width
    assert parts["block.0"].macs == attention + 8 * context * width**2 + 2 * 5 * context * width
    head = torch.nn.Linear(width, 11, bias=False)
    stages = LayerWise().stages(3, 3)
    with_head, without = (paper_cost(encoder, stages, heads, 1, 1).macs for heads in ({"lm_head": head}, {}))
    assert with_head - without == 3 * 3 * context * width * 11


@pytest.mark.parametrize("setting", ["vocabulary", "context", "depth", "width", "heads"])
def test_numbers_below_one_are_refused(setting: str) -> None:
    with pytest.raises(ValueError, match=f"{setting} must be at least 1, got 0"):
        CausalTransformerSpec(**{setting: 0})


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="width 256 must be a multiple of heads 7"):
        CausalTransformerSpec(heads=7)


def test_pretrained_weights_of_a_deeper_network_give_its_first_blocks(tmp_path: Path, texts) -> None:
    trained = build_encoder(SMALL, seed=0)
    save_file(trained.state_dict(), tmp_path / "model.safetensors")
    small = {"vocabulary": 11, "context": 6, "width": 16, "heads": 2}
    shallow = build_encoder(CausalTransformerSpec(**small, depth=2, weights=str(tmp_path)), seed=1)
    trained.depth = 2
    assert torch.equal(shallow(texts), trained(texts))


def test_pretrained_weights_of_another_context_are_refused(tmp_path: Path) -> None:
    save_file(build_encoder(SMALL, seed=0).state_dict(), tmp_path / "model.safetensors")
    other = CausalTransformerSpec(vocabulary=11, context=7, depth=3, width=16, heads=2, weights=str(tmp_path))
    with pytest.raises(ValueError, match=r"stem.positions \(6, 16\), not \(7, 16\)"):
        build_encoder(other, seed=0)
