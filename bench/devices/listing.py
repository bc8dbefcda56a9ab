"""Devices and profiles as lines of text: what is usable now, what to install for the rest, where numbers come from."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Iterator

from .. import runner
from .naming import resolve_device
from .profiles import Figure, Profile, profile_files, read_profile, user_folder
from .sysroot import QEMU, emulated_cores, missing_for_emulation, missing_tools


def list_devices() -> Iterator[str]:
    """Yield every device with its method and what it lacks, then every profile's figures with their sources."""
    yield "device                          method        now"
    emulated = runner.is_emulated(platform.machine(), runner.elf_machine())
    here = "not usable: this Python is emulated" if emulated else f"usable ({platform.machine()})"
    ssh = "usable" if shutil.which("ssh") else "apt-get install openssh-client"
    yield _line("cpu", "measured", here)
    yield _line("ssh://[user@]host[:port]", "measured-ssh", ssh)
    yield _line("qemu:PROFILE", "emulated", missing_for_emulation() or "usable")
    yield _line("PROFILE", "estimated", "usable")
    arm = resolve_device("arm")
    yield _line("arm", arm.method, (arm.note or "").removeprefix("device arm: "))
    yield ""
    cores = emulated_cores() if missing_tools([QEMU]) is None else frozenset()
    for path in profile_files().values():
        profile = read_profile(path)
        if cores and profile.emulate_as not in cores:
            yield f"qemu:{profile.name}: not usable, the installed QEMU has no {profile.emulate_as}"
    yield f"Profiles of your own: TOML files in {user_folder()}, or --device FILE.toml; see docs/devices.md."
    for path in profile_files().values():
        yield ""
        yield from list_figures(read_profile(path))


def list_figures(profile: Profile) -> Iterator[str]:
    """Yield a profile's title and every number of it with its source."""
    yield f"{profile.name}: {profile.title}, {profile.core}"
    for name, figure in profile.figures().items():
        yield f"  {name:<22} {_number(figure):<18} {figure.kind}: {figure.source}"
    for level in profile.levels:
        if level.bandwidth_gb_s is None and level is not profile.levels[0]:
            yield f"  {level.name + ' bandwidth_gb_s':<22} {'not known':<18} no slower than what lies behind it"


def _line(name: str, method: str, now: str) -> str:
    return f"{name:<31} {method:<13} {now}"


def _number(figure: Figure) -> str:
    return f"{figure.low:.10g}" if figure.low == figure.high else f"{figure.low:.10g} to {figure.high:.10g}"
