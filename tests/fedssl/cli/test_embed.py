"""Features of any folder of images, by an exported encoder."""

import builtins
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fedssl.__main__ import main
from fedssl.data.datasets.decoding import read_image
from fedssl.data.datasets.pixels import Decoding
from fedssl.training.export import export_encoder
from layerwise import EncoderSpec, build_encoder
from linear_eval import TimmEncoder

TINY = {"patch_size": 4, "depth": 1, "embed_dim": 16, "num_heads": 2}
DECODING = Decoding("pad", "black")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run whose images were padded with black."""
    folder = tmp_path_factory.mktemp("run")
    encoder = build_encoder(EncoderSpec("vit_tiny_patch16_224", 8, 1, options=TINY), seed=0)
    export_encoder(encoder, folder / "encoder", [0.3], [0.2], decoding=DECODING)
    return folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Three images that are not square, in folders of any name, and a text."""
    root = tmp_path / "my images ü"
    generator = np.random.default_rng(0)
    for name in ("b.png", "train/1.png", "x/test/deep/2.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (12, 20), np.uint8)).save(root / name)
    (root / "notes.txt").write_text("")
    return root


def embed(run: Path, images: Path, out: Path, *more: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["embed", str(run), str(images), "--out", str(out), "--device=cpu", *more])
    if ended.value.code:
        raise ValueError(ended.value.code)


def read(out: Path) -> dict[str, Any]:
    with np.load(out, allow_pickle=False) as file:
        return dict(file)


def test_every_image_gets_the_features_of_the_encoder(
    run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "features.npz"
    embed(run, images, out, "--batch_size=2")
    found = read(out)
    assert found["files"].tolist() == ["b.png", "train/1.png", "x/test/deep/2.png"]
    module = TimmEncoder(str(run / "encoder")).eval()
    pixels = torch.stack([read_image(images / name, 8, 1, DECODING) for name in found["files"]])
    with torch.no_grad():
        expected = module.encoder((pixels / 255 - 0.3) / 0.2)
    assert torch.allclose(torch.from_numpy(found["features"]), expected, atol=1e-5)
    said = capsys.readouterr()
    assert "4 files: 3 images read, 1 skipped (not images: .txt 1), 3 padded to a square" in said.err
    assert said.out == f"3 features of width 16 are in {out}\n"
    with pytest.raises(ValueError, match="exists: choose another name, or --overwrite"):
        embed(run, images, out)
    embed(run / "encoder", images, out, "--overwrite", "--data.fit=stretch")
    assert not np.allclose(read(out)["features"], found["features"], atol=1e-3)
    assert "3 stretched to a square" in capsys.readouterr().err


def test_bad_files_are_refused_or_skipped(run: Path, images: Path, tmp_path: Path) -> None:
    out, good = tmp_path / "features.npz", (images / "b.png").read_bytes()
    (images / "cut off.png").write_bytes(good[: len(good) // 2])
    with pytest.raises(ValueError, match=r"cut off\.png is not a readable image"):
        embed(run, images, out)
    assert not out.exists()
    embed(run, images, out, "--data.max_bad_files=1")
    assert len(read(out)["features"]) == 3


def test_what_cannot_be_used_is_named(run: Path, images: Path, tmp_path: Path) -> None:
    out, empty = tmp_path / "features.npz", tmp_path / "empty"
    empty.mkdir()
    (empty / "notes.txt").write_text("")
    text = tmp_path / "text"
    text.mkdir()
    (text / "config.json").write_text('{"characters": "abc"}')
    for folder, why in ((empty, "no config.json|has a config.json"), (text, "is an encoder of text"), (out, "no such")):
        with pytest.raises(ValueError, match=why):
            embed(folder, images, out)
    with pytest.raises(ValueError, match=r"has no images \(1 files: 0 images read, 1 skipped \(not images: .txt 1\)"):
        embed(run, empty, out)
    with pytest.raises(ValueError, match="is no folder"):
        embed(run, tmp_path / "nowhere", out)
    with pytest.raises(ValueError, match=r"must end in \.npz or \.parquet"):
        embed(run, images, tmp_path / "features.csv")
    with pytest.raises(ValueError, match=r"data\.fit must be crop, pad, stretch, got 'squeeze'"):
        embed(run, images, out, "--data.fit=squeeze")
    with pytest.raises(ValueError, match="--device warp cannot be used"):
        embed(run, images, out, "--device=warp")
    assert not out.exists()


def test_a_full_disk_leaves_no_half_file(
    run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(ValueError, match=r"No space left on device.*features\.npz"):
        embed(run, images, tmp_path / "features.npz")
    assert not list(tmp_path.glob("*features*"))


def test_parquet_has_a_row_for_each_file(
    run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "features.parquet"
    with monkeypatch.context() as patch:
        ordinary = builtins.__import__
        patch.setattr(builtins, "__import__", lambda name, *rest: _absent(name) or ordinary(name, *rest))
        with pytest.raises(ValueError, match="pip install pyarrow"):
            embed(run, images, out)
    parquet = pytest.importorskip("pyarrow.parquet", reason="Parquet needs pyarrow")
    embed(run, images, out)
    rows = parquet.read_table(out).to_pylist()
    assert [row["file"] for row in rows] == ["b.png", "train/1.png", "x/test/deep/2.png"]
    assert len(rows[0]["features"]) == 16


def _absent(name: str) -> None:
    if name.partition(".")[0] == "pyarrow":
        raise ImportError(name)


def test_the_export_notes_how_images_were_converted(run: Path) -> None:
    noted = json.loads((run / "encoder" / "config.json").read_text())["decoding"]
    assert noted == asdict(DECODING)
