"""DICOM files as 8-bit images, with the optional package ``pydicom``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

DICOM = "DICOM"


def open_dicom(path: Path, window: tuple[float, float] | None) -> Image.Image:
    """Read the first frame of a DICOM file, grey of 8 bits or colour.

    Stored values are rescaled (to Hounsfield units in CT). The window is the given one, else the first of the file,
    else the range of the stored bits. Where low values are bright (MONOCHROME1), the image is inverted.

    Raises:
        ValueError: The package is not installed, or lacks what the file is compressed with.
    """
    try:
        import pydicom
    except ImportError as error:
        raise ValueError("DICOM is read with pydicom: pip install 'fedssl[dicom]'") from error
    file = pydicom.dcmread(path)
    pixels = file.pixel_array[0] if int(file.get("NumberOfFrames", 1)) > 1 else file.pixel_array
    if pixels.ndim == 3:
        image = Image.fromarray(pixels)
    else:
        slope, intercept = float(file.get("RescaleSlope", 1)), float(file.get("RescaleIntercept", 0))
        level, width = window or _own_window(file, slope, intercept)
        grey = np.clip((pixels * slope + intercept - level) * (255 / width) + 127.5, 0, 255).round().astype(np.uint8)
        image = Image.fromarray(255 - grey if file.PhotometricInterpretation == "MONOCHROME1" else grey)
    image.format = DICOM
    return image


def _own_window(file: Any, slope: float, intercept: float) -> tuple[float, float]:
    """Return level and width of a file's window, or of all values that its bits can store."""
    if "WindowCenter" in file and "WindowWidth" in file:
        level, width = (np.atleast_1d(file[key].value)[0] for key in ("WindowCenter", "WindowWidth"))
        return float(level), max(float(width), 1.0)
    span = 2.0**file.BitsStored
    middle = 0.0 if file.PixelRepresentation else span / 2
    return middle * slope + intercept, span * abs(slope)
