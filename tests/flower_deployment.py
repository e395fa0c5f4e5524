"""A Flower deployment on the loopback interface: real processes, free ports, own certificates; all of it ends here."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from shutil import which
from typing import Any

from tiny_runs import ROOT, TINY_FEDERATION, environment

BIN = Path(sys.executable).parent
LIARS = ROOT / "tests" / "fedssl" / "flower" / "liars"
PATIENCE = 240
CERTIFICATES = """
openssl ecparam -name prime256v1 -genkey -noout -out ca.key
openssl req -x509 -new -key ca.key -sha256 -days 2 -subj "/CN=federation" -out ca.crt \
  -addext "basicConstraints=critical,CA:TRUE" -addext "keyUsage=critical,keyCertSign,cRLSign"
openssl ecparam -name prime256v1 -genkey -noout -out server.key
openssl req -new -key server.key -subj "/CN=localhost" -out server.csr
printf 'basicConstraints=CA:FALSE\\nsubjectAltName=DNS:localhost,IP:127.0.0.1\\n' > ext.cnf
printf 'extendedKeyUsage=serverAuth\\nkeyUsage=digitalSignature\\nauthorityKeyIdentifier=keyid\\n' >> ext.cnf
openssl x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -sha256 \
  -extfile ext.cnf -out server.crt
"""


def make_certificates(folder: Path) -> Path:
    """A certificate authority and a server certificate."""
    folder.mkdir(parents=True)
    subprocess.run(["bash", "-ec", CERTIFICATES], cwd=folder, check=True, capture_output=True)
    return folder


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Loopback:
    """A SuperLink and its SuperNodes.

    Args:
        folder: Where everything is written.
        tls: Whether to use TLS and registered keys.
        simulation: Whether the nodes are virtual, on Ray.
    """

    def __init__(self, folder: Path, tls: bool, simulation: bool = False) -> None:
        self.folder, self.tls, self.simulation = folder, tls, simulation
        self.home = folder / "home"
        self.home.mkdir(parents=True)
        self.port = free_port()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.certificates = make_certificates(folder / "tls") if tls else None
        self.connect(self.port)

    def environment(self) -> dict[str, str]:
        quiet = {
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "PYTHONWARNINGS": "ignore",
        }
        path = f"{BIN}:{os.environ['PATH']}"
        return environment() | quiet | {"FLWR_HOME": str(self.home), "PATH": path, "WANDB_MODE": "offline"}

    def start_link(self) -> None:
        """Starts the SuperLink and waits until it answers."""
        options = ["--host", "127.0.0.1", "--port", str(self.port), "--database", str(self.folder / "state.db")]
        files = {"ca-certfile": "ca.crt", "certfile": "server.crt", "keyfile": "server.key"}
        secure = [f"--ssl-{option}={self.certificates}/{name}" for option, name in files.items()]
        security = [*secure, "--enable-supernode-auth"] if self.tls else ["--insecure"]
        kind = ["--simulation"] if self.simulation else []
        self._start("link", "flower-superlink", *options, *security, *kind)
        self.until(self._healthy, "the SuperLink")

    def start_node(
        self,
        name: str,
        config: str,
        key: str | None = None,
        ca: Path | None = None,
        lie: str = "",
        port: int = 0,
        commands: Path | None = None,
        options: Sequence[str] = (),
    ) -> None:
        """Starts a SuperNode.

        Args:
            name: Of its process and log.
            config: Its ``--node-config``.
            key: A key made before.
            ca: Another certificate authority to trust.
            port: Of a proxy before the SuperLink.
            lie: A function of ``liars/sitecustomize.py`` that changes what its ClientApp answers.
            commands: Folder of commands that go before Flower's.
            options: Of ``flower-supernode``.
        """
        secure = ["--root-certificates", str(ca or f"{self.certificates}/ca.crt")] if self.tls else ["--insecure"]
        login = ["--auth-supernode-private-key", str(self.folder / key)] if key else []
        cache = f'cache-dir="{self.folder / "cache"}"'
        link = ["--superlink", f"127.0.0.1:{port or self.port}", "--host", "127.0.0.1", "--port", str(free_port())]
        command = ["flower-supernode", *secure, *login, *link, "--node-config", f"{config} {cache}"]
        variables = {"PYTHONPATH": str(LIARS), "LIE": lie} if lie else {}
        variables |= {"PATH": f"{commands}:{self.environment()['PATH']}"} if commands else {}
        self._start(name, *command, *options, **variables)

    def start_proxy(self, server: str) -> int:
        """Starts nginx with a ``server`` block, and returns its port."""
        port, folder = free_port(), self.folder / "nginx"
        folder.mkdir()
        changes = {"listen 443": f"listen 127.0.0.1:{port}", "127.0.0.1:8000": f"127.0.0.1:{self.port}"}
        for name in ("server.crt", "server.key"):
            changes[f" {name}"] = f" {self.certificates}/{name}"
        for old, new in changes.items():
            assert old in server
            server = server.replace(old, new)
        paths = "".join(
            f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        (folder / "nginx.conf").write_text(
            f"pid {folder}/pid; error_log {folder}/error.log; daemon off; events {{}}\n"
            f"http {{ access_log {folder}/access.log; {paths}\n{server} }}\n"
        )
        self._start("nginx", "nginx", "-p", str(folder), "-c", "nginx.conf")
        return port

    def register(self, name: str) -> str:
        """A new key that the SuperLink accepts."""
        self.new_key(name)
        assert self.flwr("supernode", "register", f"{self.folder / name}.pub", "loop", "--name", name)["success"]
        return name

    def new_key(self, name: str) -> str:
        """A key that the SuperLink does not know."""
        command = ["ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-f", str(self.folder / name)]
        subprocess.run(command, check=True)
        return name

    def run(self, *settings: str, app: Path = ROOT, **config: Any) -> int:
        """Submits a run of the app in a folder and returns its id."""
        values = {"arguments": settings_text(settings), **{k.replace("_", "-"): v for k, v in config.items()}}
        path = self.folder / f"run{time.monotonic_ns()}.toml"
        path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items()))
        virtual = ["--federation-config", "num-supernodes=3 client-resources-num-cpus=1"] if self.simulation else []
        answer = self.flwr("run", str(app), "loop", "--run-config", str(path), *virtual)
        assert answer["success"], answer
        return int(answer["run-id"])

    def status(self, run: int) -> str:
        """As ``flwr list`` has it."""
        return str(next(each["status"] for each in self.flwr("list", "loop")["runs"] if int(each["run-id"]) == run))

    def finish(self, run: int) -> str:
        """Waits for the end of a run."""
        self.until(lambda: self.status(run).startswith("finished"), f"the end of run {run}")
        return self.status(run)

    def log(self, run: int) -> str:
        """What the ServerApp printed."""
        command = [str(BIN / "flwr"), "log", str(run), "loop", "--show"]
        done = subprocess.run(command, capture_output=True, text=True, env=self.environment(), timeout=PATIENCE)
        return done.stdout + done.stderr

    def flwr(self, *command: str) -> dict[str, Any]:
        """Flower's command line; its exit status says nothing."""
        done = subprocess.run(
            [str(BIN / "flwr"), *command, "--format", "json"],
            capture_output=True,
            text=True,
            env=self.environment(),
            cwd=self.folder,
            timeout=PATIENCE,
        )
        try:
            return json.loads(done.stdout[done.stdout.index("{") :])
        except ValueError as error:
            raise AssertionError(done.stdout + done.stderr) from error

    def until(self, condition: Callable[[], object], what: str, seconds: float = PATIENCE) -> None:
        """Waits."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"{what} did not come:\n{self.output()}"
            time.sleep(0.3)

    def output(self) -> str:
        """The last lines of all processes."""
        return "\n".join(f"--- {path.name}\n{path.read_text()[-2500:]}" for path in sorted(self.folder.glob("*.log")))

    def kill(self, name: str, how: int = signal.SIGKILL) -> None:
        """Ends a process and what it started."""
        process = self.processes.pop(name)
        _signal_group(process, how)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            _signal_group(process, signal.SIGKILL)
            process.wait(20)
        _signal_group(process, signal.SIGKILL)

    def close(self) -> None:
        """Ends everything: nodes first."""
        for name in sorted(self.processes, key=lambda each: each == "link"):
            self.kill(name, signal.SIGTERM)
        # A ServerApp has a session of its own, and can outlive the SuperLink that started it.
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if f"FLWR_HOME={self.home}\0".encode() in (process / "environ").read_bytes():
                    os.kill(int(process.name), signal.SIGKILL)

    def _start(self, name: str, *command: str, **variables: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [str(which(command[0], path=self.environment()["PATH"])), *command[1:]],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment() | variables,
                cwd=self.folder,
                start_new_session=True,
            )

    def _healthy(self) -> bool:
        assert self.processes["link"].poll() is None, self.output()
        context = ssl.create_default_context(cafile=f"{self.certificates}/ca.crt") if self.tls else None
        url = f"http{'s' if self.tls else ''}://127.0.0.1:{self.port}/health"
        try:
            return urllib.request.urlopen(url, context=context, timeout=5).status == 200
        except OSError:
            return False

    def connect(self, port: int) -> None:
        """Configures ``flwr`` for a SuperLink or its proxy at a port."""
        trust = f'root-certificates = "{self.certificates}/ca.crt"' if self.tls else "insecure = true"
        text = f'[superlink]\ndefault = "loop"\n\n[superlink.loop]\naddress = "127.0.0.1:{port}"\n{trust}\n'
        (self.home / "config.toml").write_text(text)


def settings_text(settings: tuple[str, ...]) -> str:
    """Settings of the tiny federation as the run configuration wants them."""
    return " ".join(f"'{each}'" for each in (*TINY_FEDERATION, "--trainer.logger=false", *settings))


def _signal_group(process: subprocess.Popen[bytes], how: int) -> None:
    try:
        os.killpg(process.pid, how)
    except ProcessLookupError:
        return
