import pytest
import torch
from torchvision.transforms import functional as tv

from ssl_methods.augment import color


@pytest.fixture
def images():
    rgb = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    rgb[0] = rgb[0, :1]  # grey
    rgb[1, :, :4] = 0  # black
    rgb[2] = rgb[2].round()  # pure colours
    return rgb


FACTORS = torch.tensor([0.0, 0.3, 0.8, 1.0, 1.4, 2.0])
SHIFTS = torch.tensor([-0.5, -0.2, -0.05, 0.0, 0.1, 0.5])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("ours", "theirs", "parameters"),
    [
        (color.adjust_brightness_, tv.adjust_brightness, FACTORS),
        (color.adjust_contrast_, tv.adjust_contrast, FACTORS),
        (color.adjust_saturation_, tv.adjust_saturation, FACTORS),
        (color.adjust_hue_, tv.adjust_hue, SHIFTS),
    ],
)
def test_jitter_equals_torchvisions(images, channels, ours, theirs, parameters):
    images = images[:, :channels].contiguous()
    expected = [theirs(image, value.item()) for image, value in zip(images, parameters, strict=True)]
    torch.testing.assert_close(ours(images.clone(), parameters), torch.stack(expected), atol=2e-6, rtol=0)


@pytest.mark.parametrize("operation", [color.adjust_brightness_, color.adjust_contrast_, color.adjust_saturation_])
def test_factor_one_changes_nothing(images, operation):
    assert torch.equal(operation(images.clone(), torch.ones(6)), images)


def test_hue_by_hand():
    red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
    green = color.adjust_hue_(red.clone(), torch.tensor([1 / 3]))
    torch.testing.assert_close(green.flatten(), torch.tensor([0.0, 1.0, 0.0]), atol=1e-6, rtol=0)
    dull = torch.tensor([0.5, 0.25, 0.25]).view(1, 3, 1, 1)
    cyan = color.adjust_hue_(dull, torch.tensor([0.5]))
    torch.testing.assert_close(cyan.flatten(), torch.tensor([0.25, 0.5, 0.5]), atol=1e-6, rtol=0)


def test_grayscale_equals_torchvisions(images):
    expected = tv.rgb_to_grayscale(images, num_output_channels=3)
    torch.testing.assert_close(color.to_grayscale_(images.clone()), expected)
    grey = images[:, :1].clone()
    assert torch.equal(color.to_grayscale_(grey.clone()), grey)


def test_solarize_equals_torchvisions(images):
    expected = tv.solarize(images, 0.5)
    assert torch.equal(color.solarize_(images.clone()), expected)


def test_operations_overwrite_and_return_their_images(images):
    assert color.adjust_hue_(images, SHIFTS) is images
