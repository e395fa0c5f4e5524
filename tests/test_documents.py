"""What the documents promise: their code runs, and their commands are accepted."""

import ast
import re
import shlex
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits
from tiny_runs import ROOT, TINY_FEDERATION, Unstarted

from fedssl.__main__ import main
from fedssl.data.datasets import registry
from linear_eval import EvaluatedModule

BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```', re.DOTALL | re.MULTILINE)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
HOW_TO = ROOT / "docs" / "how-to"
PLACEHOLDERS = ("DIR", "FILE", "NAME", "runs/", "play.txt", "ckpt_path", "torchrun")
"""Commands with one of these need something that only the reader has."""


def blocks(page: Path, *languages: str) -> list[tuple[str, str]]:
    """Title (or nothing) and text of the code blocks in these languages."""
    return [(title, text) for language, title, text in BLOCK.findall(page.read_text()) if language in languages]


def commands(page: Path) -> list[list[str]]:
    """Arguments of each ``python train.py fit`` or ``plan`` that a reader can type as it stands."""
    text = "\n".join(text for _, text in blocks(page, "sh", "bash")).replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if re.match(r"\s*python train.py (fit|plan) ", line)]
    return [shlex.split(line, comments=True)[2:] for line in lines if not any(word in line for word in PLACEHOLDERS)]


def write_files(page: Path, folder: Path) -> list[str]:
    """Writes the blocks that have a file's name as title; returns the names of the Python modules."""
    titled = [(title, text) for title, text in blocks(page, "python", "yaml") if title]
    for title, text in titled:
        (folder / title).write_text(text)
    return [Path(title).stem for title, _ in titled if title.endswith(".py")]


def known_to_method(setting: str, command: list[str], folder: Path) -> bool:
    """False for a width that the page's own method does not have."""
    name = setting.partition("=")[0].removeprefix("--model.method.")
    modules = [word.partition("=")[2].partition(".")[0] for word in command if word.startswith("--model.method=")]
    return name.startswith("--") or all(name in (folder / f"{module}.py").read_text() for module in modules)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=lambda page: page.stem)
def test_commands_are_accepted(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(page, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for command in commands(page):
        accepted: list[EvaluatedModule] = []
        main(command, partial(Unstarted, accepted=accepted))
        assert accepted, command


@pytest.mark.slow
@pytest.mark.parametrize("name", ["method", "scheme", "rules", "data"])
def test_the_code_of_a_how_to_trains(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = HOW_TO / f"{name}.md"
    modules = write_files(page, tmp_path)
    monkeypatch.chdir(tmp_path)  # configurations may name modules of the working folder
    monkeypatch.syspath_prepend(tmp_path)
    own = [c for c in commands(page) if c[0] == "fit" and any(f"={module}." in " ".join(c) for module in modules)]
    assert own
    for number, command in enumerate(own):
        folder = tmp_path / str(number)
        tiny = [setting for setting in TINY_FEDERATION if known_to_method(setting, command, tmp_path)]
        main([*command, *tiny, "--trainer.logger=false", f"--run_dir={folder}"])
        assert (folder / "results.json").exists()


def test_the_reader_of_the_how_to_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = dict(blocks(HOW_TO / "data.md", "python"))["patches.py"]
    defined: dict[str, registry.Loader] = {}
    exec(code, defined)
    monkeypatch.setitem(registry.DATASETS, "patches", defined["PATCHES"])
    with pytest.raises(FileNotFoundError, match=r"https://example.org/patches"):
        registry.load_images("patches", "train", tmp_path)
    (tmp_path / "patches").mkdir()
    np.savez(tmp_path / "patches" / "train.npz", images=np.zeros((3, 1, 9, 9), np.uint8), labels=np.array([0, 1, 1]))
    images = registry.load_images("patches", "train", tmp_path, image_size=8)
    assert (len(images), images.image_size, images.labels.tolist()) == (3, 8, [0, 1, 1])


@pytest.mark.slow
def test_the_tutorial_ends_with_a_classifier(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = ROOT / "docs" / "tutorial.md"
    monkeypatch.chdir(tmp_path)
    main(["fit", "-c", "lw_fedssl.yaml", *TINY_FEDERATION, "--trainer.logger=false", "--run_dir=runs/tutorial"])
    capsys.readouterr()
    exec("\n".join(text for _, text in blocks(page, "python")), {})
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "(1797, 16)"
    assert said[1].startswith("a 0, and its nearest neighbours: [")
    assert said[2].endswith("right with 100 labels")


def few_digits() -> Any:
    """The first 300 digits, as ``sklearn.datasets.load_digits`` has them all."""
    digits = load_digits()
    return SimpleNamespace(images=digits.images[:300], target=digits.target[:300])


@pytest.mark.slow
@pytest.mark.report
def test_the_hospitals_end_with_results_for_each_and_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = ROOT / "docs" / "tutorial-hospitals.md"
    code = [text for _, text in blocks(page, "python")]
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("sklearn.datasets.load_digits", few_digits)
        exec(code[0], {})
    text = "\n".join(text for _, text in blocks(page, "sh")).replace("\\\n", " ")
    fit, embed = (shlex.split(line)[2:] for line in text.splitlines() if line.startswith("python train.py"))
    tiny = [each for each in TINY_FEDERATION if "train_images" not in each and "clients" not in each]
    main([*fit, *tiny, "--trainer.logger=false"])
    assert "mean over 3 clients: kNN " in capsys.readouterr().out
    assert "Each client by itself" in Path("runs/hospitals/report.html").read_text()
    with pytest.raises(SystemExit) as ended:
        main(embed)
    assert ended.value.code == 0
    capsys.readouterr()
    exec("\n".join(code[1:]), {})
    said = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in said[:3]] == ["north", "south", "west"]
    assert re.fullmatch(r"like north/\d/\d+\.png: (\w+/\d/\d+\.png(, )?){3}", said[3])


@pytest.mark.parametrize(
    "record", sorted((ROOT / "benchmarks" / "results").glob("paper_*.md")), ids=lambda record: record.stem
)
def test_results_show_the_records(record: Path) -> None:
    shown = (ROOT / "docs" / "results.md").read_text()
    table = [line for line in record.read_text().splitlines() if line.startswith("|")]
    assert len(table) > 3
    assert [line for line in table if line not in shown] == []


def test_names_that_lead_from_paper_to_code_exist() -> None:
    rows = re.findall(
        r"\| `([\w.]+)` \| `([\w/]+\.py)` \|$", (ROOT / "docs/paper-to-code.md").read_text(), re.MULTILINE
    )
    assert len(rows) > 40
    for name, file in rows:
        node: ast.AST = ast.parse((ROOT / file).read_text())
        for part in name.split("."):
            found = {getattr(child, "name", None): child for child in ast.iter_child_nodes(node)}
            assert part in found, f"{name} is not in {file}"
            node = found[part]


def test_files_that_documents_name_exist() -> None:
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        if page.name == "CHANGELOG.md":  # of the past
            continue
        for name in re.findall(r"`((?:\w+/)+\w+\.py)`", page.read_text()):
            assert (ROOT / name).exists(), f"{page.name}: {name}"
