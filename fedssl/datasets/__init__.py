"""Images (uint8, one square size, in memory or decoded on demand) and texts (pieces of equal length)."""

from fedssl.datasets.image_set import ArrayImages, FileImages, ImageSet
from fedssl.datasets.registry import DATASETS, load_images
from fedssl.datasets.sample_set import SampleSet
from fedssl.datasets.speeches import speeches
from fedssl.datasets.text_set import VOCABULARY, TextSet
from fedssl.datasets.texts import load_text

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
