"""Augmentation: two random views of image batches, as tensors, on any device."""

from ssl_methods.augment.presets import DigitsViews, MedicalViews, NaturalViews
from ssl_methods.augment.views import TwoViews

__all__ = ["DigitsViews", "MedicalViews", "NaturalViews", "TwoViews"]
