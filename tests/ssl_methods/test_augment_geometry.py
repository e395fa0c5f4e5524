import math

import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tv

from ssl_methods.augment.geometry import affine_matrices, crop_boxes, crop_matrices, flip_matrices, resample


def boxes_from(units, image_size=(32, 32), scale=(0.2, 1.0), ratio_range=(3 / 4, 4 / 3)):
    return crop_boxes(*units, image_size, scale=scale, ratio_range=ratio_range)


def one(value):
    return torch.tensor([value], dtype=torch.float32)


def test_crop_box_by_hand():
    # A quarter of 16x16 is 64 pixels and the middle of [1/4, 4] on a log scale is 1: a box of 8x8.
    units = (one(0.25), one(0.5), one(0.5), one(0.25))
    box = boxes_from(units, (16, 16), (1e-9, 1.0), (0.25, 4.0))
    torch.testing.assert_close(box, torch.tensor([[4.0, 2.0, 8.0, 8.0]]))


def test_crop_ratio_that_does_not_fit_is_clamped_and_keeps_the_area():
    units = (one(0.5), one(0.0), one(0.9), one(0.9))
    box = boxes_from(units, (8, 8), (0.5, 0.5), (4.0, 4.0))  # would be 11.3 wide
    torch.testing.assert_close(box, torch.tensor([[3.6, 0.0, 4.0, 8.0]]))


@pytest.mark.parametrize("image_size", [(32, 32), (24, 48)])
def test_crop_distributions(image_size):
    generator = torch.Generator().manual_seed(0)
    top, left, height, width = boxes_from(torch.rand(4, 20_000, generator=generator), image_size).unbind(1)
    share = height * width / (image_size[0] * image_size[1])
    assert share.mean().item() == pytest.approx(0.6, abs=0.01)
    assert share.var().item() == pytest.approx(0.8**2 / 12, rel=0.03)
    assert share.min() >= 0.2 - 1e-5
    assert share.max() <= 1 + 1e-5
    small = share < 0.4  # every ratio fits
    log_ratio = (width / height).log()[small] / math.log(4 / 3)
    quarters = torch.histc(log_ratio, bins=4, min=-1, max=1) / small.sum()
    torch.testing.assert_close(quarters, torch.full((4,), 0.25), atol=0.03, rtol=0)
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= image_size[0] + 1e-4).all()
    assert (left + width <= image_size[1] + 1e-4).all()
    slack = image_size[0] - height > 1
    assert (top / (image_size[0] - height))[slack].mean().item() == pytest.approx(0.5, abs=0.02)


def test_whole_image_crop_is_the_identity():
    matrices = crop_matrices(torch.tensor([[0.0, 0.0, 6.0, 10.0]]), (6, 10))
    torch.testing.assert_close(matrices[0], torch.eye(3))


def test_crop_equals_torchvisions_inside():
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    ours = resample(image, crop_matrices(torch.tensor([[3.0, 5.0, 8.0, 4.0]]), (16, 16)), "border")
    theirs = tv.resized_crop(image, 3, 5, 8, 4, [16, 16], InterpolationMode.BILINEAR, antialias=False)
    # At the box's edge torchvision repeats pixels, for half an input pixel: 1 row and 2 columns here.
    torch.testing.assert_close(ours[..., 1:-1, 2:-2], theirs[..., 1:-1, 2:-2])


def test_flips_equal_torchvisions():
    images = torch.rand(4, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    horizontal, vertical = torch.tensor([False, True, False, True]), torch.tensor([False, False, True, True])
    flipped = resample(images, flip_matrices(horizontal, vertical), "zeros")
    expected = [images[0], tv.hflip(images[1]), tv.vflip(images[2]), tv.vflip(tv.hflip(images[3]))]
    torch.testing.assert_close(flipped, torch.stack(expected), atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(16, 16), (12, 20)])
@pytest.mark.parametrize(
    ("angle", "shear", "zoom", "shift"),
    [
        (30.0, 0.0, 1.0, (0, 0)),
        (0.0, 20.0, 1.0, (0, 0)),
        (0.0, 0.0, 0.7, (0, 0)),
        (0.0, 0.0, 1.0, (2, -3)),
        (-25.0, 12.0, 1.2, (3, 1)),
    ],
)
def test_affine_equals_torchvisions(size, angle, shear, zoom, shift):
    image = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
    shares = one(shift[0] / size[1]), one(shift[1] / size[0])
    ours = resample(image, affine_matrices(one(angle), one(shear), one(zoom), *shares, size), "zeros")
    theirs = tv.affine(image, angle, list(shift), zoom, [shear, 0.0], InterpolationMode.BILINEAR)
    # torchvision blends the fill in by a mask, which differs where the image ends.
    inside = tv.affine(torch.ones(1, 1, *size), angle, list(shift), zoom, [shear, 0.0], InterpolationMode.BILINEAR)
    keep = (inside > 0.999).expand_as(image)
    assert keep.float().mean() > 0.3
    torch.testing.assert_close(ours[keep], theirs[keep], atol=1e-4, rtol=0)


def test_padding():
    image = torch.ones(1, 1, 4, 4)
    away = affine_matrices(one(0.0), one(0.0), one(1.0), one(0.5), one(0.0), (4, 4))
    torch.testing.assert_close(resample(image, away, "zeros")[0, 0, 0], torch.tensor([0.0, 0.0, 1.0, 1.0]))
    torch.testing.assert_close(resample(image, away, "border"), image)


def test_composition_applies_the_leftmost_matrix_first():
    image = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    crop = crop_matrices(torch.tensor([[0.0, 0.0, 8.0, 4.0]]), (8, 8))
    flip = flip_matrices(torch.tensor([True]), torch.tensor([False]))
    both = resample(image, crop @ flip, "border")
    torch.testing.assert_close(both, tv.hflip(resample(image, crop, "border")), atol=1e-5, rtol=0)
