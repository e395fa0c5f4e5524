import colorsys
import math

import pytest
import torch

from ssl_methods.augment.views import TwoViews, UnitDraws, draw_units


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def random_images(batch=6, channels=3, size=(16, 16)):
    return torch.randint(0, 256, (batch, channels, *size), dtype=torch.uint8, generator=seeded(7))


EVERYTHING = {
    "crop_scale": (0.2, 1.0),
    "flip": 0.5,
    "vertical_flip": 0.5,
    "rotation": 20.0,
    "shear": 10.0,
    "zoom": (0.8, 1.2),
    "shift": 0.1,
    "brightness": 0.4,
    "contrast": 0.4,
    "saturation": 0.4,
    "hue": 0.1,
    "grayscale": 0.3,
    "blur": (0.5, 0.5),
    "solarize": (0.5, 0.5),
    "noise": 0.1,
}
COLOUR_ONLY = {"saturation", "hue", "grayscale"}


def test_plain_by_hand():
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    views = TwoViews(mean=(0.0, 0.2, 0.5), std=(1.0, 0.5, 0.25))
    torch.testing.assert_close(views.plain(images).flatten(), torch.tensor([0.0, 0.0, 2.0]))


@pytest.mark.parametrize("channels", [1, 3])
def test_everything_off_gives_the_plain_images(channels):
    images = random_images(channels=channels)
    views = TwoViews()
    first, second = views(images, seeded())
    assert torch.equal(first, views.plain(images))
    assert torch.equal(second, views.plain(images))
    assert first.untyped_storage().data_ptr() != second.untyped_storage().data_ptr()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(16, 16), (9, 14), (1, 1)])
@pytest.mark.parametrize("batch", [1, 5])
def test_shape_type_and_finite(channels, size, batch):
    images = random_images(batch, channels, size)
    before = images.clone()
    for view in TwoViews(**EVERYTHING)(images, seeded()):
        assert view.shape == images.shape
        assert view.dtype == torch.float32
        assert view.is_contiguous()
        assert view.isfinite().all()
        assert view.abs().max() <= 1 + 1e-5
    assert torch.equal(images, before)


@pytest.mark.parametrize("name", EVERYTHING)
@pytest.mark.parametrize("channels", [1, 3])
def test_each_switch_alone(name, channels):
    images = random_images(32, channels)
    views = TwoViews(**{name: EVERYTHING[name]})
    first, second = views(images, seeded())
    if channels == 1 and name in COLOUR_ONLY:
        assert torch.equal(first, views.plain(images))
        return
    assert not torch.equal(first, views.plain(images))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("name", ["blur", "solarize"])
def test_probabilities_per_view(name):
    images = random_images()
    views = TwoViews(**{name: (1.0, 0.0)})
    first, second = views(images, seeded())
    changed = (first != views.plain(images)).flatten(1).any(dim=1)
    assert changed.all()
    assert torch.equal(second, views.plain(images))


def test_same_generator_state_same_views():
    images, views = random_images(), TwoViews(**EVERYTHING)
    generator = seeded()
    once, later = views(images, generator), views(images, generator)
    again = views(images, seeded())
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
    assert not torch.equal(once[0], later[0])
    assert not torch.equal(once[0], once[1])


def test_global_random_state_is_left_alone():
    state = torch.get_rng_state()
    TwoViews(**EVERYTHING)(random_images(), seeded())
    assert torch.equal(state, torch.get_rng_state())


def test_the_first_view_alone_is_the_first_of_two():
    images, views = random_images(), TwoViews(**EVERYTHING)
    torch.testing.assert_close(views.first(images, seeded()), views(images, seeded())[0], atol=1e-6, rtol=0)


def test_images_have_their_own_parameters():
    images = random_images(1).repeat(8, 1, 1, 1)
    first, _ = TwoViews(**{**EVERYTHING, "noise": 0.0})(images, seeded())
    assert len(first.flatten(1).unique(dim=0)) == 8


def test_an_image_does_not_depend_on_the_other_images():
    images = random_images()
    others = images.clone()
    others[1:] = 255 - others[1:]
    views = TwoViews(**EVERYTHING)
    for ours, theirs in zip(views(images, seeded()), views(others, seeded()), strict=True):
        torch.testing.assert_close(ours[0], theirs[0])


@pytest.mark.parametrize("name", ["hue", "blur", "solarize", "grayscale", "crop_scale"])
def test_generator_advances_alike_whatever_is_on(name):
    images = random_images()
    off, on = seeded(), seeded()
    TwoViews()(images, off)
    TwoViews(**{name: EVERYTHING[name]})(images, on)
    assert torch.equal(off.get_state(), on.get_state())


def test_mixed_precision_around_the_call_changes_nothing():
    images, views = random_images(), TwoViews(**EVERYTHING)
    expected, _ = views(images, seeded())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        first, _ = views(images, seeded())
    assert first.dtype == torch.float32
    assert torch.equal(first, expected)


def test_rates_of_the_coin_tosses():
    # A gradient tells flips; a bright and a dark half tell solarisation.
    gradient = torch.arange(0, 256, 16, dtype=torch.uint8).expand(3000, 1, 1, 16)
    flipped, _ = TwoViews(flip=0.3)(gradient, seeded())
    assert (flipped[:, 0, 0, 0] > 0).float().mean().item() == pytest.approx(0.3, abs=0.03)
    flipped, _ = TwoViews(vertical_flip=0.7)(gradient.mT.contiguous(), seeded())
    assert (flipped[:, 0, 0, 0] > 0).float().mean().item() == pytest.approx(0.7, abs=0.03)
    colour = torch.tensor([200, 100, 40], dtype=torch.uint8).view(1, 3, 1, 1).repeat(3000, 1, 1, 1)
    first, second = TwoViews(grayscale=0.2, solarize=(0.0, 0.4))(colour, seeded())
    assert (first[:, 0] == first[:, 1]).float().mean().item() == pytest.approx(0.2, abs=0.03)
    inverted = (second[:, 0] <= 0) & (second[:, 0] != second[:, 1])
    assert inverted.float().mean().item() == pytest.approx(0.8 * 0.4, abs=0.03)
    jittered, _ = TwoViews(brightness=0.4, jitter_probability=0.8)(colour, seeded())
    unchanged = jittered[:, 0] == TwoViews().plain(colour)[:, 0]
    assert unchanged.float().mean().item() == pytest.approx(0.2, abs=0.03)


@pytest.mark.parametrize(("amount", "low", "high"), [(0.4, 0.6, 1.4), (1.5, 0.0, 2.5)])
def test_brightness_factor_is_uniform_in_torchvisions_range(amount, low, high):
    dark = torch.full((4000, 1, 1, 1), 51, dtype=torch.uint8)
    first, _ = TwoViews(mean=(0.0,), std=(0.2,), brightness=amount)(dark, seeded())
    check_uniform(first.flatten(), low, high)


@pytest.mark.parametrize(("amount", "low", "high"), [(0.4, 0.6, 1.4), (1.5, 0.0, 2.5)])
def test_contrast_factor_is_uniform_in_torchvisions_range(amount, low, high):
    halves = torch.tensor([102, 153], dtype=torch.uint8).expand(4000, 1, 1, 2)  # 0.1 below and above their mean
    first, _ = TwoViews(mean=(0.0,), std=(1.0,), contrast=amount)(halves, seeded())
    check_uniform((first[..., 1] - first[..., 0]).flatten() / 0.2, low, high)


@pytest.mark.parametrize(("amount", "low", "high"), [(0.4, 0.6, 1.4), (1.5, 0.0, 2.5)])
def test_saturation_factor_is_uniform_in_torchvisions_range(amount, low, high):
    pixels = torch.tensor([153, 102, 102], dtype=torch.uint8).view(1, 3, 1, 1).repeat(4000, 1, 1, 1)
    first, _ = TwoViews(mean=(0.0,), std=(1.0,), saturation=amount)(pixels, seeded())
    check_uniform((first[:, 0] - first[:, 1]).flatten() / 0.2, low, high)


def test_hue_shift_is_uniform():
    red = torch.tensor([200, 100, 100], dtype=torch.uint8).view(1, 3, 1, 1).repeat(4000, 1, 1, 1)
    first, _ = TwoViews(mean=(0.0,), std=(1.0,), hue=0.1)(red, seeded())
    hues = [colorsys.rgb_to_hsv(*pixel)[0] for pixel in first.flatten(1).tolist()]
    check_uniform((torch.tensor(hues) + 0.5) % 1 - 0.5, -0.1, 0.1)


def test_rate_and_deviation_of_the_blur():
    point = torch.zeros(4000, 1, 9, 9, dtype=torch.uint8)
    point[:, :, 4, 4] = 255
    views = TwoViews(mean=(0.0,), std=(1.0,), blur=(1.0, 0.3), blur_sigma=(0.5, 1.5))
    first, second = (view[:, 0, 4, 5] / view[:, 0, 4, 4] for view in views(point, seeded()))
    check_uniform((-0.5 / first.log()).sqrt(), 0.5, 1.5)  # a Gaussian's neighbours over its centre
    assert (second > 0).float().mean().item() == pytest.approx(0.3, abs=0.03)


@pytest.mark.parametrize("name", ["shift_x", "shift_y", "rotation", "zoom", "shear"])
def test_affine_parameters_are_uniform(name):
    views = TwoViews(rotation=15.0, shear=10.0, zoom=(0.5, 1.5), shift=0.2)
    neutral = {"zoom": torch.full((4000,), 0.5)}  # the middle of every range changes nothing
    units = {field: neutral.get(field, torch.full((4000,), 0.5)) for field in UnitDraws._fields}
    units[name] = getattr(draw_units(4000, seeded()), name)
    matrices = views._matrices(UnitDraws(**units), (8, 8))
    if name == "rotation":
        check_uniform(torch.atan2(matrices[:, 0, 1], matrices[:, 0, 0]).rad2deg(), -15, 15)
    elif name == "zoom":
        check_uniform(1 / matrices[:, 0, 0], 0.5, 1.5)
    elif name == "shear":
        check_uniform(matrices[:, 0, 1].atan().rad2deg(), -10, 10)
    else:
        check_uniform(-matrices[:, "xy".index(name[-1]), 2] / 2, -0.2, 0.2)


def test_noise_has_its_deviation():
    grey = torch.full((4, 3, 32, 32), 128, dtype=torch.uint8)
    first, _ = TwoViews(mean=(128 / 255,), std=(0.05,), noise=0.05)(grey, seeded())
    assert first.mean().item() == pytest.approx(0, abs=0.03)
    assert first.std().item() == pytest.approx(1, abs=0.03)


def check_uniform(values, low, high):
    assert values.min().item() >= low - 1e-4
    assert values.max().item() <= high + 1e-4
    width = high - low
    assert values.mean().item() == pytest.approx((low + high) / 2, abs=0.03 * width)
    assert values.std().item() == pytest.approx(width / math.sqrt(12), rel=0.05)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 3, 4, 4), r"non-empty uint8 .*, got torch\.float32 \(2, 3, 4, 4\)"),
        (torch.zeros(3, 4, 4, dtype=torch.uint8), r"\(B, C, H, W\).*got torch.uint8 \(3, 4, 4\)"),
        (torch.zeros(2, 2, 4, 4, dtype=torch.uint8), r"C 1 or 3, got torch.uint8 \(2, 2, 4, 4\)"),
        (torch.zeros(0, 3, 4, 4, dtype=torch.uint8), r"non-empty.*got torch.uint8 \(0, 3, 4, 4\)"),
    ],
)
def test_images_that_do_not_fit(images, message):
    generator = seeded()
    with pytest.raises(ValueError, match=message):
        TwoViews()(images, generator)
    with pytest.raises(ValueError, match=message):
        TwoViews().plain(images)
    assert torch.equal(generator.get_state(), seeded().get_state())


def test_mean_for_three_channels_refuses_one():
    with pytest.raises(ValueError, match="mean has 3 values, but the images have 1 channels"):
        TwoViews(mean=(0.5, 0.5, 0.5)).plain(random_images(channels=1))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"mean": ()}, "mean must have 1 or 3 values, got 0"),
        ({"mean": (math.inf,)}, "mean must be finite"),
        ({"std": (0.0,)}, "std must be finite and above 0"),
        ({"crop_scale": (0.5, 0.2)}, r"crop_scale must be .* <= 1, got \(0.5, 0.2\)"),
        ({"crop_scale": (0.0, 1.0)}, "crop_scale"),
        ({"crop_scale": (0.5, 1.5)}, "crop_scale"),
        ({"crop_ratio": (-1.0, 1.0)}, "crop_ratio"),
        ({"flip": 1.5}, "flip must be between 0 and 1, got 1.5"),
        ({"vertical_flip": -0.1}, "vertical_flip"),
        ({"flip": math.nan}, "flip must be between 0 and 1, got nan"),
        ({"rotation": 200.0}, "rotation must be between 0 and 180"),
        ({"shear": 90.0}, "shear"),
        ({"zoom": (1.2, 0.8)}, "zoom"),
        ({"zoom": (1.0, math.inf)}, "zoom"),
        ({"shift": 2.0}, "shift"),
        ({"brightness": -0.4}, "brightness must be a finite number of at least 0, got -0.4"),
        ({"contrast": math.inf}, "contrast"),
        ({"saturation": -1.0}, "saturation"),
        ({"hue": 0.6}, "hue must be between 0 and 0.5, got 0.6"),
        ({"jitter_probability": 2.0}, "jitter_probability"),
        ({"grayscale": 2.0}, "grayscale"),
        ({"blur": (1.0,)}, "blur must have one probability for each of the two views"),
        ({"blur": (1.0, 1.1)}, "blur"),
        ({"blur_sigma": (0.0, 1.0)}, "blur_sigma"),
        ({"solarize": (0.0, -0.2)}, "solarize"),
        ({"noise": -0.1}, "noise"),
    ],
)
def test_settings_out_of_range(setting, message):
    with pytest.raises(ValueError, match=message):
        TwoViews(**setting)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"padding": "reflection"}, "padding must be one of zeros, border, got 'reflection'"),
        ({"crop_ratio": None}, r"crop_ratio must be \(low, high\), got None"),
        ({"blur_sigma": None}, r"blur_sigma must be \(low, high\), got None"),
    ],
)
def test_settings_are_refused_before_the_first_batch(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TwoViews(**settings)  # type: ignore[arg-type]
    assert TwoViews(crop_scale=None, zoom=None)
