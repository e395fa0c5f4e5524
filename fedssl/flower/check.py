"""Command ``train.py node check``: reads a node's configuration before a run does, and prints what it would send."""

from __future__ import annotations

import json
import os
import shutil
import socket
import ssl
import tomllib
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_ssh_private_key

from fedssl.cli.arguments import UsageError
from fedssl.data.datasets import load_images
from fedssl.flower import installed_app
from fedssl.flower.client_app import Worker
from fedssl.flower.consent import content_hash, read_consent
from fedssl.flower.records import Hello, encode_hello
from fedssl.flower.settings import Node, read_node
from fedssl.utils.units import format_bytes

QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}
"""Environment without which Flower sends telemetry, or fetches packages for a run."""

SECONDS = 10.0

Look = Callable[[], str]


def check_node(arguments: list[str]) -> int:
    """Run the command and return its exit status: 1 if there is a problem.

    Raises:
        ValueError: The node's configuration cannot be read at all.
    """
    options = _parse(arguments)
    with Path(options.config).open("rb") as file:
        node = read_node(tomllib.load(file))
    problems = 0
    for what, look in _looks(node, options):
        try:
            print(f"{what:<12} {look()}")
        except (ValueError, OSError) as error:
            problems += 1
            print(f"{what:<12} PROBLEM: {error}")
    if not problems:
        consent = read_consent(node.consent)
        images = _count(node) if node.images and "counts" not in consent.withhold else 0
        hello = encode_hello(Hello(node.client_id, {}, node.memory_bytes, images, consent.withhold))
        print(f"{'would send':<12} {hello.config_records['note']['json']!s}")
        results = [figure for figure in ("loss", "counts", "operations") if figure not in consent.withhold]
        print(f"{'':<12} and with trained layers: {', '.join(results) or 'nothing else'}")
    return int(problems > 0)


def _parse(arguments: list[str]) -> Namespace:
    parser = ArgumentParser("train.py node", description=__doc__)
    parser.add_argument("action", choices=["check"])
    parser.add_argument("config", help="TOML file that --node-config of flower-supernode names")
    parser.add_argument("--superlink", help="address host:port, to try to reach it")
    parser.add_argument("--root-certificates", help="as for flower-supernode")
    parser.add_argument("--auth-supernode-private-key", help="as for flower-supernode")
    parser.add_argument("--recipe", help="recipe.yaml of a run, to try whether this node would take part")
    options = parser.parse_args(arguments)
    if not options.config.endswith(".toml"):
        raise UsageError(f"{options.config} must be a TOML file, as Flower reads no other for --node-config")
    return options


def _looks(node: Node, options: Namespace) -> Iterator[tuple[str, Look]]:
    yield "consent", partial(_consent, node)
    if node.images:
        yield "images", lambda: f"{_count(node)} in {node.images}"
    if node.data_root:
        yield "data-root", partial(_folder, Path(node.data_root))
    yield "memory", partial(_memory, node)
    for what, folder in (("cache-dir", node.cache), ("audit", node.audit), ("FLWR_HOME", _flower_home())):
        yield what, partial(_writable, folder)
    yield "environment", _environment
    yield "code", _code
    if options.auth_supernode_private_key:
        yield "key", partial(_key, Path(options.auth_supernode_private_key))
    if options.superlink:
        yield "superlink", partial(_reach, options.superlink, options.root_certificates)
    if options.recipe:
        yield "recipe", partial(_recipe, node, Path(options.recipe))


def _consent(node: Node) -> str:
    if node.consent is None:
        return "no file: any run may train here, within what the parser of recipes allows"
    limits = vars(read_consent(node.consent)).items()
    return f"{node.consent}: " + json.dumps({name: value for name, value in limits if value and name != "path"})


def _count(node: Node) -> int:
    assert node.images is not None
    return len(load_images("folder", "train", node.images, 32, 3, in_memory=False, download=False))


def _folder(folder: Path) -> str:
    return f"{folder} holds {', '.join(sorted(path.name for path in folder.iterdir())[:10]) or 'nothing'}"


def _memory(node: Node) -> str:
    has = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if node.memory_bytes > has:
        raise ValueError(f"memory allows {format_bytes(node.memory_bytes)}, this machine has {format_bytes(has)}")
    allowed = format_bytes(node.memory_bytes) if node.memory_bytes else "no limit set"
    return f"{allowed}, of {format_bytes(has)} of this machine"


def _writable(folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise ValueError(f"{folder} cannot be written by this user")
    return f"{folder}, {format_bytes(shutil.disk_usage(folder).free)} free"


def _flower_home() -> Path:
    return Path(os.environ.get("FLWR_HOME", Path.home() / ".flwr"))


def _environment() -> str:
    wrong = [f"{name}={value}" for name, value in QUIET.items() if os.environ.get(name) != value]
    if wrong:
        raise ValueError(f"set {' '.join(wrong)} where flower-supernode starts, or Flower may use the Internet")
    return "Flower sends no telemetry and fetches no packages"


def _code() -> str:
    command = shutil.which("flwr-clientapp")
    if command and installed_app.__name__ in Path(command).read_text(errors="replace"):
        return f"pinned: {command} runs the installed package"
    return "not pinned: the app that the SuperLink sends runs here, see docs/deployment.md"


def _key(path: Path) -> str:
    text = path.read_bytes()
    load = load_ssh_private_key if b"OPENSSH" in text else load_pem_private_key
    kind = type(load(text, password=None)).__name__
    if path.stat().st_mode & 0o077:
        raise ValueError(f"others can read {path}: chmod 600")
    return f"{path}, {kind}"


def _reach(address: str, certificates: str | None) -> str:
    host, _, port = address.rpartition(":")
    if not port.isdecimal():
        raise ValueError(f"--superlink must be host:port, got {address}")
    trust = ssl.create_default_context(cafile=certificates)
    with (
        socket.create_connection((host, int(port)), SECONDS) as plain,
        trust.wrap_socket(plain, server_hostname=host) as secure,
    ):
        until = dict(secure.getpeercert() or {}).get("notAfter")
        return f"{address} answers with {secure.version()}; its certificate holds until {until}"


def _recipe(node: Node, path: Path) -> str:
    text, consent = path.read_bytes().decode(), read_consent(node.consent)
    consent.check_recipe(content_hash(text), path)
    own = Worker(text, node.data_root, consent).count_own(node)
    return f"{content_hash(text)} may train here, on {f'{own} own images' if own else 'a share of its data set'}"
