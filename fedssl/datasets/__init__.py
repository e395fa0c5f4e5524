"""Images for pretraining and evaluation: uint8, one square size, in memory or decoded on demand."""

from fedssl.datasets.image_set import ArrayImages, FileImages, ImageSet
from fedssl.datasets.registry import DATASETS, load_images

__all__ = ["DATASETS", "ArrayImages", "FileImages", "ImageSet", "load_images"]
