"""The project as a whole: its files agree with each other, and imports point one way."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_runs import ROOT

import layerwise
import ssl_methods

FOLDERS = (
    "utils",
    "data",
    "protocol",
    "client",
    "costs",
    "devices",
    "memory_budget",
    "server",
    "federation",
    "training",
    "runs",
    "planning",
    "api",
    "cli",
    "flower",
    "comparison",
)
"""The folders of the federation from the bottom up: each may import itself and those before it."""

ROOT_MODULES = {"__init__", "__main__"}
CORE = ("protocol", "client", "costs", "devices", "memory_budget", "server", "federation")
ENGINES = {"pytorch_lightning", "lightning", "flwr", "ray"}
LIBRARIES = {"layerwise", "ssl_methods", "linear_eval"}
OURS = LIBRARIES | {"fedssl"}
NOT_DISTRIBUTED = {"benchmarks"}
DOCUMENTS = [path for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")] if path.is_file()]


def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def sources(folder: str) -> list[Path]:
    found = sorted((ROOT / folder).rglob("*.py"))
    assert found, folder
    return found


def imported(path: Path) -> set[str]:
    """Top-level names of everything a file imports, at any depth of its code."""
    return {name.partition(".")[0] for name in imported_modules(path)}


def imported_modules(path: Path) -> list[str]:
    """Dotted names of the modules that a file imports, at any depth of its code."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names += (
                [f"fedssl.{alias.name}" for alias in node.names] if node.module == "fedssl" else [node.module or ""]
            )
    return names


def compared_strings(code: str) -> Iterator[str]:
    """String literals on either side of a comparison, and those that ``match`` matches."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Compare | ast.MatchValue):
            yield from (
                part.value for part in ast.walk(node) if isinstance(part, ast.Constant) and isinstance(part.value, str)
            )


def used_names(code: str) -> set[str]:
    """Every name, attribute and imported name in the code; not those in strings."""
    nodes = list(ast.walk(ast.parse(code)))
    names = {node.id for node in nodes if isinstance(node, ast.Name)}
    names |= {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    return names | {node.name for node in nodes if isinstance(node, ast.alias)}


def classes_below(module: Any, base: type) -> set[Any]:
    found = {each for each in vars(module).values() if isinstance(each, type) and issubclass(each, base)}
    return found - {base}


def choices() -> dict[str, set[str]]:
    """Names of the classes that a user can choose, and the names they give themselves."""
    schemes = classes_below(layerwise, layerwise.Scheme)
    methods = classes_below(ssl_methods, ssl_methods.Method) - {ssl_methods.SSLMethod}
    assert len(schemes) >= 3
    assert len(methods) >= 3
    classes = {each.__name__ for each in schemes | methods}
    return {"classes": classes, "all": classes | {scheme.name for scheme in schemes}}


def test_conda_environment_agrees_with_pyproject() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    project = pyproject()["project"]
    *conda, pip = environment["dependencies"]
    assert environment["name"] == project["name"]
    assert environment["channels"] == ["conda-forge"]
    assert f"python {project['requires-python']}" in conda
    assert "pip" in conda
    assert pip == {"pip": ["-e .[dev]"]}
    assert "dev" in project["optional-dependencies"]


def test_distribution_has_all_packages() -> None:
    tops = [path.parent for path in ROOT.glob("*/__init__.py") if path.parent.name not in NOT_DISTRIBUTED]
    on_disk = {path.parent.relative_to(ROOT) for top in tops for path in top.rglob("__init__.py")}
    setuptools = pyproject()["tool"]["setuptools"]
    folders = [ROOT / "configs", *(path for path in (ROOT / "configs").rglob("*") if path.is_dir())]
    configs = {".".join(("fedssl", *path.relative_to(ROOT).parts)) for path in folders}
    assert setuptools["package-dir"] == {"fedssl.configs": "configs"}
    assert sorted(setuptools["packages"]) == sorted({".".join(path.parts) for path in on_disk} | configs)
    assert all((top / "py.typed").exists() for top in tops)


def test_workflows_test_every_supported_python() -> None:
    tests = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text())
    named = [line.rpartition(" ")[2] for line in pyproject()["project"]["classifiers"] if "Python :: 3." in line]
    assert tests["jobs"]["check"]["strategy"]["matrix"]["python"] == named


@pytest.mark.parametrize("package", sorted(LIBRARIES))
def test_libraries_know_neither_the_federation_nor_each_other(package: str) -> None:
    for path in sources(package):
        assert not imported(path) & (OURS - {package}), path


def test_the_entry_point_knows_only_the_federation() -> None:
    assert imported(ROOT / "train.py") - sys.stdlib_module_names == {"fedssl"}


def test_every_part_of_the_federation_has_its_floor() -> None:
    below = ROOT / "fedssl"
    assert {path.parent.name for path in below.glob("*/__init__.py")} == set(FOLDERS)
    assert {path.stem for path in below.glob("*.py")} == ROOT_MODULES


@pytest.mark.parametrize("folder", FOLDERS)
def test_imports_lead_downwards_only(folder: str) -> None:
    allowed = {f"fedssl.{below}" for below in (*FOLDERS[: FOLDERS.index(folder) + 1], "__version__")}
    for path in sources(f"fedssl/{folder}"):
        ours = {".".join(name.split(".")[:2]) for name in imported_modules(path) if name.split(".")[0] == "fedssl"}
        assert ours <= allowed, path


@pytest.mark.parametrize("folder", CORE)
def test_the_federations_core_imports_no_engine(folder: str) -> None:
    for path in sources(f"fedssl/{folder}"):
        assert not imported(path) & ENGINES, path


@pytest.mark.parametrize("path", sources("fedssl"), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_federation_never_asks_which_scheme_or_method_it_runs(path: Path) -> None:
    names = choices()
    code = path.read_text()
    assert not set(compared_strings(code)) & names["all"]
    assert not used_names(code) & names["classes"]


def test_a_comparison_with_a_name_is_seen() -> None:
    assert list(compared_strings('if scheme.name == "layer-wise": pass')) == ["layer-wise"]
    assert list(compared_strings('if method in ("SimCLR", name): pass')) == ["SimCLR"]
    assert list(compared_strings('match name:\n    case "BYOL": pass')) == ["BYOL"]
    assert not list(compared_strings('print("layer-wise")'))


def test_the_table_of_random_numbers_has_every_purpose() -> None:
    code = "".join(path.read_text() for path in sources("fedssl"))
    purposes = set(re.findall(r'(?:derive_seed|torch_generator|numpy_generator)\([^"()]*"([^"]+)"', code))
    section = (ROOT / "docs/architecture.md").read_text().partition("## Random numbers")[2].partition("\n## ")[0]
    listed = {name for row in re.findall(r"^\|([^|]+)\|", section, re.MULTILINE) for name in re.findall("`(.+?)`", row)}
    assert len(purposes) > 15
    assert purposes <= listed
    # Not by the calls alone: some purposes are handed on as arguments.
    assert [name for name in listed if f'"{name}"' not in code] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_to_existing_files(document: Path) -> None:
    text = re.sub(r"```.*?```|`[^`\n]*`", "", document.read_text(), flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)\s]+)", text)
    local = [target.partition("#")[0] for target in targets if not re.match(r"[a-z]+:|#", target)]
    assert [target for target in local if not (document.parent / target).exists()] == []
