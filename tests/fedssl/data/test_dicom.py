"""DICOM files, written here; without pydicom only the advice to install it."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedssl.data.datasets import load_images
from fedssl.data.datasets.decoding import read_image
from fedssl.data.datasets.pixels import Decoding


def write_dicom(path: Path, values: np.ndarray, **tags: Any) -> None:
    pydicom = pytest.importorskip("pydicom", reason="pip install 'fedssl[dicom]'")
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    file = pydicom.Dataset()
    file.file_meta = pydicom.dataset.FileMetaDataset()
    file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file.SOPClassUID, file.SOPInstanceUID = CTImageStorage, "1.2.3"
    frames = values[None] if values.ndim == 2 else values
    file.Rows, file.Columns = frames.shape[1:]
    file.SamplesPerPixel, file.PixelRepresentation = 1, int(values.dtype == np.int16)
    file.BitsAllocated, file.BitsStored, file.HighBit = 16, 12, 11
    file.PhotometricInterpretation, file.NumberOfFrames = "MONOCHROME2", len(frames)
    for tag, value in tags.items():
        setattr(file, tag, value)
    file.PixelData = frames.tobytes()
    file.save_as(path, enforce_file_format=True)


def test_dicom_is_read_through_a_window(tmp_path: Path) -> None:
    values, path = np.array([[0, 1024], [1064, 4095]], np.uint16), tmp_path / "a.dcm"
    write_dicom(path, values)
    assert read_image(path, 2, 1).tolist() == [[[0, 64], [66, 255]]]  # all 12 bits
    write_dicom(path, values, RescaleIntercept=-1024, WindowCenter=[40, 400], WindowWidth=[80, 900])
    assert read_image(path, 2, 1).tolist() == [[[0, 0], [128, 255]]]  # its first window, in Hounsfield units
    assert read_image(path, 2, 1, Decoding(window=(0, 160))).tolist() == [[[0, 128], [191, 255]]]
    write_dicom(path, values, PhotometricInterpretation="MONOCHROME1")
    assert read_image(path, 2, 1).tolist() == [[[255, 191], [189, 0]]]
    write_dicom(path, np.stack([values.astype(np.int16) - 2048, np.zeros((2, 2), np.int16)]))
    assert read_image(path, 2, 1).tolist() == [[[0, 64], [66, 255]]]  # signed, the first of two frames
    images = load_images("folder", "train", tmp_path, 2, 1)
    assert images.account == "1 files: 1 images read, 1 converted from DICOM"


def test_dicom_needs_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.dcm").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(ValueError, match=r"a.dcm is not a readable image: .* pip install 'fedssl\[dicom\]'"):
        load_images("folder", "train", tmp_path, 2)
