"""A real sshd on 127.0.0.1 for tests: an unprivileged user, a key made for the test, nothing of the system's touched.

Run by root, the tests need a user to log in as: one is added for their duration. Otherwise it is whoever runs them.
"""

from __future__ import annotations

import getpass
import os
import pwd
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SSHD = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")
KEYGEN = shutil.which("ssh-keygen")
PACKAGES = [sysconfig.get_path("purelib"), *(path for path in sys.path if path.endswith("site-packages"))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sshd:
    """The server, and where the test's user may write; `commands` is for PATH, so that `ssh` reads `config`."""

    process: subprocess.Popen[bytes]
    port: int
    user: str
    folder: Path
    commands: Path

    @property
    def python(self) -> Path:
        return self.folder / "python"

    @property
    def temporary(self) -> Path:
        """Where everything that runs for a connection makes its temporary files."""
        return self.folder / "tmp"

    def address(self, python: Path | str | None = None) -> str:
        return f"ssh://{self.user}@127.0.0.1:{self.port}{python or self.python}"

    def write_config(self, *, known_hosts: Path | None = None, identity: Path | None = None) -> None:
        lines = [
            f"UserKnownHostsFile {known_hosts or self.folder / 'known_hosts'}",
            "GlobalKnownHostsFile /dev/null",
            f"IdentityFile {identity or self.folder / 'identity'}",
            "IdentitiesOnly yes",
            "IdentityAgent none",
        ]
        (self.folder / "config").write_text("Host *\n" + "\n".join(f"  {line}" for line in lines) + "\n")

    def write_python(self, name: str, *, packages: list[str], before: str = "") -> Path:
        """Write an interpreter that finds `packages` and keeps its temporary files in `temporary`."""
        path = self.folder / name
        path.write_text(
            f"#!/bin/sh\nexport TMPDIR={self.temporary} PYTHONPATH={':'.join(packages)}\n{before}\n"
            f'exec {interpreter()} "$@"\n'
        )
        path.chmod(0o755)
        return path

    def sessions(self) -> list[int]:
        """Return the server's processes that hold a connection: one that watches and one that talks."""
        return sessions(self.process.pid)

    def left_running(self) -> list[str]:
        """Return the command lines of processes that work in the temporary folder."""
        found = []
        for process in Path("/proc").iterdir():
            try:
                words = (process / "cmdline").read_bytes() if process.name.isdigit() else b""
            except OSError:
                continue
            if str(self.temporary).encode() in words:
                found.append(words.decode(errors="replace").replace("\0", " "))
        return found


def children(parent: int) -> list[int]:
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == parent:
            found.append(int(status.parent.name))
    return found


def sessions(server: int) -> list[int]:
    """Return the processes below `server` that are sshd themselves, not what a user runs."""
    found = []
    for process in children(server):
        if Path(f"/proc/{process}/comm").read_text().startswith("sshd"):
            found += [process, *sessions(process)]
    return found


def interpreter() -> str:
    """Return a Python of this version that an unprivileged user may run."""
    if os.getuid() != 0:
        return sys.executable
    system = f"/usr/bin/python3.{sys.version_info.minor}"
    return system if Path(system).is_file() else sys.executable


def missing() -> str | None:
    """Return why no sshd can be started, if so."""
    if SSHD is None or KEYGEN is None:
        return "no sshd: apt-get install --no-install-recommends openssh-server"
    if os.getuid() == 0 and shutil.which("useradd") is None:
        return "root may not be logged in as, and there is no useradd to add another user"
    return None


@contextmanager
def running() -> Iterator[Sshd]:
    """Start the server; stop it, and remove all that it needed, at the end."""
    folder = Path(tempfile.mkdtemp(prefix="test-sshd-"))
    folder.chmod(0o755)
    try:
        with login(folder) as user:
            yield from _serve(folder, user)
    finally:
        shutil.rmtree(folder)


@contextmanager
def login(folder: Path) -> Iterator[str]:
    """Yield an unprivileged user who owns `folder`."""
    if os.getuid() != 0:
        yield getpass.getuser()
        return
    user = f"bench{os.getpid()}"
    subprocess.run(["useradd", "--no-create-home", "-d", folder, "-s", "/bin/sh", "-p", "*", user], check=True)
    try:
        yield user
    finally:
        subprocess.run(["userdel", user], check=True, capture_output=True)


def _serve(folder: Path, user: str) -> Iterator[Sshd]:
    for name in ("host_key", "identity", "stranger"):
        subprocess.run([str(KEYGEN), "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    (folder / "tmp").mkdir()
    (folder / "commands").mkdir()
    (folder / "authorized_keys").write_text((folder / "identity.pub").read_text())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    host_key = (folder / "host_key.pub").read_text().split()[:2]
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {' '.join(host_key)}\n")
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host_key\nPidFile none\nUsePAM no\nStrictModes no\n"
        f"AuthorizedKeysFile {folder}/authorized_keys\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
    )
    wrapper = folder / "commands" / "ssh"
    wrapper.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {folder}/config "$@"\n')
    wrapper.chmod(0o755)
    account = {}
    if os.getuid() == 0:
        entry = pwd.getpwnam(user)
        account = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
        for path in (folder / "host_key", folder / "tmp"):
            os.chown(path, entry.pw_uid, entry.pw_gid)
    with (folder / "log").open("wb") as log:
        command = [str(SSHD), "-D", "-e", "-f", folder / "sshd_config"]
        process = subprocess.Popen(command, stderr=log, **account)
    try:
        _wait_until_it_listens(process, port, folder / "log")
        server = Sshd(process=process, port=port, user=user, folder=folder, commands=folder / "commands")
        server.write_config()
        server.write_python("python", packages=PACKAGES)
        yield server
    finally:
        for session in sessions(process.pid):
            os.kill(session, 9)
        process.kill()
        process.wait()


def _wait_until_it_listens(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    for _ in range(100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if process.poll() is not None:
            break
        time.sleep(0.05)
    raise RuntimeError(f"sshd does not listen: {log.read_text()}")
