"""Data sets: images (uint8, one square size, in memory or decoded on demand) and texts (pieces of equal length)."""

from fedssl.data.datasets.registry import DATASETS, load_images
from fedssl.data.datasets.samples import ArrayImages, FileImages, ImageSet, SampleSet
from fedssl.data.datasets.texts import VOCABULARY, TextSet, load_text, speeches

__all__ = [
    "DATASETS",
    "VOCABULARY",
    "ArrayImages",
    "FileImages",
    "ImageSet",
    "SampleSet",
    "TextSet",
    "load_images",
    "load_text",
    "speeches",
]
