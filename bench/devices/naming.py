"""What `--device NAME` means: a method and where it is applied.

cpu                              measured        this machine
ssh://[user@]host[:port][/PYTHON] measured-ssh   another machine, with its python3 or the one named
PROFILE, FILE.toml               estimated       a processor that is known by its figures alone
qemu:PROFILE                     emulated        this machine pretends to be it
arm                              the best of these for the default profile, and it says which
"""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass
from typing import Literal

from toolchain.errors import BenchError

from .. import runner
from .profiles import Profile, find_profile, profile_files, user_folder
from .sysroot import emulated_cores, missing_for_emulation

Method = Literal["measured", "measured-ssh", "emulated", "estimated"]
MEASURED: frozenset[Method] = frozenset({"measured", "measured-ssh"})

HOST = "host"  # what `toolchain bench calibrate` calls the profile that it writes
DEFAULT_PROFILE = "rpi4"  # the most common board in this class, and the core that most figures were published of
ADDRESS = re.compile(
    r"ssh://(?:(?P<user>[A-Za-z0-9_][A-Za-z0-9_.-]*)@)?(?P<host>[A-Za-z0-9_][A-Za-z0-9_.-]*|\[[0-9A-Fa-f:.]+\])"
    r"(?::(?P<port>[0-9]{1,5}))?(?P<python>/[A-Za-z0-9_./+-]+)?/?"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where ssh connects to, and the Python to run there."""

    user: str | None
    host: str
    port: int | None
    python: str

    def __str__(self) -> str:
        """Return the address as messages name it."""
        user = f"{self.user}@" if self.user else ""
        return f"ssh://{user}{self.host}" + (f":{self.port}" if self.port else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A device by its name, with the method that its rows will carry; `note` says what a user should know of it."""

    name: str
    method: Method
    profile: Profile | None = None
    address: Address | None = None
    note: str | None = None

    @property
    def is_measured(self) -> bool:
        """Whether its rows hold times that were measured."""
        return self.method in MEASURED


def resolve_device(name: str) -> Device:
    """Say what a name means; nothing is contacted or started.

    Raises:
        BenchError: it is no device, or its profile is not complete.
    """
    if name == "cpu":
        return Device(name=name, method="measured")
    if name.startswith("ssh:"):
        return Device(name=name, method="measured-ssh", address=parse_address(name))
    if name.startswith("qemu:"):
        return Device(name=name, method="emulated", profile=find_profile(name.removeprefix("qemu:")))
    if name == "arm":
        return _best_arm()
    if name in profile_files() or name.endswith(".toml"):
        return Device(name=name, method="estimated", profile=find_profile(name))
    if name == HOST:
        raise BenchError(
            f"device {name!r}: this machine's own profile was not measured yet; expected {HOST}.toml in "
            f"{user_folder()}. Run `toolchain bench calibrate`."
        )
    known = ", ".join(("cpu", "arm", *profile_files()))
    raise BenchError(
        f"device {name!r}: is not known; expected one of: {known}; or qemu:PROFILE, ssh://user@host, a profile's file. "
        "`toolchain devices` lists them."
    )


def parse_address(name: str) -> Address:
    """Read an ssh address.

    Raises:
        BenchError: it is not one; what a shell or ssh could take for an option is not accepted either.
    """
    found = ADDRESS.fullmatch(name)
    port = int(found["port"]) if found and found["port"] else None
    if found is None or (port is not None and not 0 < port < 65536):
        raise BenchError(
            f"device {name!r}: is not an address; expected ssh://[user@]host[:port][/path/of/python3]. Correct it."
        )
    return Address(user=found["user"], host=found["host"].strip("[]"), port=port, python=found["python"] or "python3")


def _best_arm() -> Device:
    """Choose the method for `arm`: measured on native aarch64, emulated where all is installed, else estimated."""
    if platform.machine() == "aarch64" and not runner.is_emulated("aarch64", runner.elf_machine()):
        return Device(name="arm", method="measured", note="device arm: this machine is aarch64, measured here")
    profile = find_profile(DEFAULT_PROFILE)
    title = f"{profile.name} ({profile.title})"
    missing = missing_for_emulation()
    if missing is None and profile.emulate_as in emulated_cores():
        note = (
            f"device arm: emulated as qemu:{title}; instructions and parity, no time. For time: --device {profile.name}"
        )
        return Device(name="arm", method="emulated", profile=profile, note=note)
    remedy = missing or "install a newer qemu-user"
    note = f"device arm: estimated as {title}. To run aarch64 code: `{remedy}`"
    return Device(name="arm", method="estimated", profile=profile, note=note)
