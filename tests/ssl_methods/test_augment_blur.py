import math

import pytest
import torch
from torchvision.transforms import functional as tv

from ssl_methods.augment.color import blur_matrices, gaussian_blur


@pytest.mark.parametrize(("channels", "height", "width"), [(3, 16, 16), (1, 18, 18)])
def test_equals_torchvisions(channels, height, width):
    images = torch.rand(4, channels, height, width, generator=torch.Generator().manual_seed(0))
    sigmas = torch.tensor([0.1, 0.5, 2.0, 20.0])
    kernel = [2 * min(height, width) - 1] * 2  # as far as reflection goes
    expected = [
        tv.gaussian_blur(image, kernel, [sigma.item()] * 2) for image, sigma in zip(images, sigmas, strict=True)
    ]
    torch.testing.assert_close(gaussian_blur(images, sigmas), torch.stack(expected), atol=1e-5, rtol=0)


def test_weights_by_hand():
    # With this sigma the weights are 1, 1/2 and 1/16 at 0, 1 and 2 pixels; 3 pixels are beyond reflection.
    sigma = torch.tensor([(2 * math.log(2)) ** -0.5])
    expected = torch.tensor([[1.0, 1.0, 0.125], [0.5, 1.125, 0.5], [0.125, 1.0, 1.0]])
    torch.testing.assert_close(blur_matrices(sigma, 3)[0], expected / 2.125)
    image = torch.tensor([8.0, 0.0, 0.0]).view(1, 1, 1, 3)
    torch.testing.assert_close(gaussian_blur(image, sigma).flatten(), expected[:, 0] * 8 / 2.125)


def test_rows_sum_to_one():
    weights = blur_matrices(torch.tensor([0.1, 1.0, 50.0]), 9)
    torch.testing.assert_close(weights.sum(dim=2), torch.ones(3, 9))


def test_one_pixel_stays():
    image = torch.rand(1, 1, 1, 1)
    torch.testing.assert_close(gaussian_blur(image, torch.tensor([1.0])), image)


def test_sides_of_different_length():
    images = torch.rand(2, 3, 12, 18, generator=torch.Generator().manual_seed(0))
    sigmas = torch.tensor([0.5, 1.5])
    expected = [
        tv.gaussian_blur(image, [17, 17], [sigma.item()] * 2) for image, sigma in zip(images, sigmas, strict=True)
    ]
    torch.testing.assert_close(gaussian_blur(images, sigmas), torch.stack(expected), atol=1e-5, rtol=0)
