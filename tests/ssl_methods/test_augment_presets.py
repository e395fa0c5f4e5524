from dataclasses import asdict, fields

import pytest
import torch
from jsonargparse import ArgumentParser

from ssl_methods.augment import DigitsViews, MedicalViews, NaturalViews, TwoViews

PRESETS = [NaturalViews, DigitsViews, MedicalViews]


def images(channels):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (8, channels, 12, 12), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("preset", PRESETS)
def test_views_differ_from_each_other(preset):
    for channels in (1, 3):
        first, second = preset()(images(channels), torch.Generator().manual_seed(0))
        assert first.shape == second.shape == (8, channels, 12, 12)
        assert not torch.equal(first, second)


def test_presets_differ_in_defaults_only():
    for preset in PRESETS:
        assert {name for name in vars(preset) if not name.startswith("__")} <= {each.name for each in fields(TwoViews)}
        assert preset() != TwoViews()
        assert asdict(preset(**asdict(TwoViews()))) == asdict(TwoViews())


def test_what_each_preset_leaves_out():
    digits, medical = DigitsViews(), MedicalViews()
    assert (digits.flip, digits.vertical_flip, digits.crop_scale) == (0.0, 0.0, None)
    assert (medical.grayscale, medical.solarize, medical.blur) == (0.0, (0.0, 0.0), (0.0, 0.0))


@pytest.mark.parametrize("preset", PRESETS)
def test_command_line_sets_any_field(preset):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--views", type=TwoViews)
    choice = f"ssl_methods.augment.{preset.__name__}"
    words = [f"--views={choice}", "--views.solarize=[0, 0]", "--views.crop_scale=null", "--views.noise=0.2"]
    views = parser.instantiate(parser.parse_args(words)).views
    assert type(views) is preset
    assert (views.solarize, views.crop_scale, views.noise) == ((0.0, 0.0), None, 0.2)
    assert views.jitter_probability == preset().jitter_probability
