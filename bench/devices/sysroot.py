"""An aarch64 Python with ONNX Runtime in the user's cache folder, for qemu-user; the system stays as it is.

    <cache>/rnn-toolchain/aarch64-onnxruntime-1.32.0/
        root/            Debian packages, unpacked: C library, Python
        site/            PyPI wheels, unpacked: onnxruntime of this machine's version, numpy
        views/<core>/    links to root, and a /proc/cpuinfo as that core's kernel would show it
        count-….so       the plugin that counts instructions and cache misses, built from count.c with that digest
        manifest.json    name, version and sha256 of every package

Packages come from where this machine's apt and pip fetch theirs. apt checks the archive's signature, pip the index's
checksums; the manifest records what was taken. An Ubuntu archive for x86 holds no arm64: `sources` names one that does.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from toolchain.errors import BenchError

from ..cache import cache_folder
from .profiles import Profile

QEMU = "qemu-aarch64"
TOOLS = {QEMU: ("qemu-user",), "gcc": ("gcc", "libc6-dev")}  # program -> Debian packages; gcc builds the plugin
APT_INSTALL = "apt-get install --no-install-recommends"
PACKAGES = ("python3-minimal", "libpython3-stdlib", "libstdc++6")  # apt adds what they depend on
PLUGIN_SOURCE = Path(__file__).with_name("count.c")
MODERN_PLUGINS = 9  # the QEMU that dropped version 1 of the plugin interface
DOWNLOAD_TIMEOUT_S = 900.0  # 60 MB at 70 kB/s

# With QEMU 7.2 ONNX Runtime crashes on the host's own x86 file: its CPU detection expects these keys.
CPUINFO = """processor\t: 0
BogoMIPS\t: 108.00
Features\t: {features}
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: {part}
CPU revision\t: 3

"""
FEATURES = "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"
DOT_PRODUCT_FEATURES = f"{FEATURES} atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp"
NO_DOT_PRODUCT = frozenset({"cortex-a35", "cortex-a53", "cortex-a57", "cortex-a72"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Sysroot:
    """An installed aarch64 Python; `onnxruntime` is its version."""

    folder: Path
    onnxruntime: str

    @property
    def site(self) -> Path:
        """The folder with numpy and onnxruntime."""
        return self.folder / "site"

    @property
    def plugin(self) -> Path:
        """The counter, see `build_plugin`."""
        return self.folder / f"count-{hashlib.sha256(PLUGIN_SOURCE.read_bytes()).hexdigest()[:12]}.so"

    def view(self, profile: Profile) -> Path:
        """Return the root folder as the profile's processor shows it; made at first use."""
        assert profile.emulate_as is not None
        view = self.folder / "views" / profile.name
        (view / "proc").mkdir(parents=True, exist_ok=True)
        for entry in (self.folder / "root").iterdir():
            link = view / entry.name
            if not link.is_symlink():
                link.symlink_to(entry)
        old = profile.emulate_as in NO_DOT_PRODUCT
        text = CPUINFO.format(features=FEATURES if old else DOT_PRODUCT_FEATURES, part=profile.cpu_part or "0xd08")
        (view / "proc" / "cpuinfo").write_text(text)
        return view

    def python(self, view: Path) -> Path:
        """Return the interpreter in a view, python3.N."""
        return next(
            path for path in sorted((view / "usr/bin").glob("python3.*")) if re.fullmatch(r"python3\.\d+", path.name)
        )


def find_sysroot() -> Sysroot | None:
    """Return the installed sysroot of this machine's ONNX Runtime version, if there is one."""
    version = importlib.metadata.version("onnxruntime")
    folder = cache_folder() / f"aarch64-onnxruntime-{version}"
    return Sysroot(folder=folder, onnxruntime=version) if (folder / "manifest.json").is_file() else None


def missing_tools(programs: Sequence[str] = tuple(TOOLS)) -> str | None:
    """Return the command that installs what this machine lacks of these programs; None where it lacks nothing."""
    packages = [package for program in programs if shutil.which(program) is None for package in TOOLS[program]]
    return f"{APT_INSTALL} {' '.join(packages)}" if packages else None


def missing_for_emulation() -> str | None:
    """Return all that has to be run before `qemu:` works, as one command line; None where it works."""
    sysroot = find_sysroot()
    if sysroot is not None:
        return missing_tools([QEMU] if sysroot.plugin.is_file() else tuple(TOOLS))
    return " && ".join(filter(None, (missing_tools(), "toolchain devices install qemu")))


def install_sysroot(say: Callable[[str], None], *, sources: Path | None = None) -> Sysroot:
    """Fetch and unpack everything below the cache folder; the folder appears complete or not at all.

    Args:
        say: called with each step before it starts.
        sources: an apt sources file to use in place of this machine's own.

    Raises:
        BenchError: a tool is missing, or a package cannot be fetched.
    """
    if (missing := missing_tools()) is not None:
        raise BenchError(f"device 'qemu': this machine lacks a tool; expected QEMU and a C compiler. Run `{missing}`.")
    version = importlib.metadata.version("onnxruntime")
    folder = cache_folder() / f"aarch64-onnxruntime-{version}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as unfinished:
        built = Path(unfinished) / "sysroot"
        _build(built, Path(unfinished) / "packages", version, say, sources)
        shutil.rmtree(folder, ignore_errors=True)
        built.rename(folder)
    return Sysroot(folder=folder, onnxruntime=version)


def _build(built: Path, packages: Path, version: str, say: Callable[[str], None], sources: Path | None) -> None:
    built.mkdir()
    say("apt: aarch64 Python and C library")
    archives = _fetch_debian(packages / "apt", sources)
    for archive in archives:
        _run(["dpkg-deb", "-x", str(archive), str(built / "root")], f"package {archive.name}")
    say(f"pip: aarch64 wheels of onnxruntime {version} and numpy")
    wheels = _fetch_wheels(packages / "pip", built / "root", archives, version)
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as file:
            file.extractall(built / "site")
    say("gcc: the plugin that counts instructions")
    build_plugin(Sysroot(folder=built, onnxruntime=version))
    manifest = {"onnxruntime": version, "packages": list(_manifest([*archives, *wheels]))}
    (built / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


def build_plugin(sysroot: Sysroot) -> None:
    """Compile the counter if there is none of this source yet, as after an update of this package.

    Raises:
        BenchError: there is no compiler, or it fails.
    """
    if not sysroot.plugin.is_file():
        interface = 2 if qemu_version() >= MODERN_PLUGINS else 1
        options = ["-O2", "-fPIC", "-shared", f"-DPLUGIN_API={interface}"]
        _run(["gcc", *options, "-o", str(sysroot.plugin), str(PLUGIN_SOURCE)], f"plugin {PLUGIN_SOURCE.name}")


def qemu_version() -> int:
    """Return the major version of the installed QEMU."""
    text = _run([QEMU, "--version"], QEMU)
    found = re.search(r"version (\d+)\.", text)
    if found is None:
        raise BenchError(
            f"{QEMU}: says {text[:60]!r}; expected its version. Install it again: `{APT_INSTALL} qemu-user`."
        )
    return int(found[1])


def emulated_cores() -> frozenset[str]:
    """Return the names of the cores that the installed QEMU has."""
    # This listing ends with exit code 1 in some versions.
    listing = subprocess.run([QEMU, "-cpu", "help"], capture_output=True, text=True, check=False)
    return frozenset(listing.stdout.split())


def _fetch_debian(folder: Path, sources: Path | None) -> list[Path]:
    """Download the packages and all they depend on, with an apt that knows only arm64 and writes only to `folder`."""
    for part in ("state/lists/partial", "cache/archives/partial"):
        (folder / part).mkdir(parents=True)
    (folder / "status").touch()  # nothing is installed: apt has to take every dependency
    lines = [
        'APT::Architecture "arm64";',
        'APT::Architectures { "arm64"; };',
        f'Dir::State "{folder}/state";',
        f'Dir::State::status "{folder}/status";',
        f'Dir::Cache "{folder}/cache";',
        'Debug::NoLocking "true";',
        'APT::Sandbox::User "root";',  # the user _apt cannot read a private cache folder
    ]
    if sources is not None:
        lines += [f'Dir::Etc::sourcelist "{sources.resolve()}";', 'Dir::Etc::sourceparts "/dev/null";']
    configuration = folder / "apt.conf"
    configuration.write_text("\n".join(lines) + "\n")
    environment = {"APT_CONFIG": str(configuration)}
    advice = " Name sources that hold arm64: `toolchain devices install qemu --apt-sources FILE`."
    _run(["apt-get", "update", "-qq"], "apt-get update for arm64", environment, advice)
    command = ["apt-get", "install", "-qq", "-y", "--download-only", "--no-install-recommends", *PACKAGES]
    _run(command, "apt-get for arm64", environment, advice)
    return sorted((folder / "cache/archives").glob("*.deb"))


def _fetch_wheels(folder: Path, root: Path, archives: Sequence[Path], version: str) -> list[Path]:
    """Download the wheels that the root's Python and C library can load."""
    python = Sysroot(folder=root.parent, onnxruntime=version).python(root).name.removeprefix("python")
    glibc = next(int(found[1]) for path in archives if (found := re.match(r"libc6_2\.(\d+)", path.name)))
    platforms = [f"manylinux_2_{minor}_aarch64" for minor in range(glibc, 16, -1)] + ["manylinux2014_aarch64"]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", python, "--dest", str(folder)]
    command += [argument for name in platforms for argument in ("--platform", name)]
    # numpy only carries arrays there: any version that fits will do.
    _run([*command, f"onnxruntime=={version}", "numpy"], "pip for aarch64")
    return sorted(folder.glob("*.whl"))


def _manifest(packages: Sequence[Path]) -> Iterator[dict[str, str]]:
    for path in packages:
        name, version = re.split(r"[_-]", path.name)[:2] if path.suffix == ".whl" else path.name.split("_")[:2]
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        yield {"name": name, "version": version, "file": path.name, "sha256": digest}


def _run(command: Sequence[str], what: str, environment: Mapping[str, str] | None = None, advice: str = "") -> str:
    """Run a tool and return what it printed.

    Raises:
        BenchError: it is not installed, fails, or does not end.
    """
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=DOWNLOAD_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **(environment or {})},
            check=False,
        )
    except FileNotFoundError as error:
        raise BenchError(f"{what}: {command[0]} is not installed; expected it on PATH. Install it.") from error
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"{what}: no end after {DOWNLOAD_TIMEOUT_S:g} s; expected less. Try again.") from error
    if done.returncode != 0:
        last = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise BenchError(
            f"{what}: failed ({last.strip().rstrip('.')}); expected it to succeed.{advice or ' Try again.'}"
        )
    return done.stdout
