"""What is known about a processor: one TOML file each, every number an interval with its source.

    title = "Raspberry Pi 4 Model B"
    core = "Cortex-A72"

    [clock_ghz]
    low = 1.5               # or `value = 1.5` for both ends
    high = 1.8
    kind = "published"      # or "derived", "measured", "unsourced"
    source = "where this number comes from, for a person to check"

    [[levels]]              # from the core outwards; the last one, memory, has no capacity
    name = "L1D"
    capacity_bytes = { value = 32768, kind = "published", source = "…" }
    bandwidth_gb_s = { value = 24.0, kind = "derived", source = "…" }     # left out where nobody published one

Users add profiles by naming a file (`--device ./board.toml`), or by putting it into the folder `user_folder()`.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from toolchain.errors import BenchError

SHIPPED = Path(__file__).parent / "profiles"
KINDS = ("published", "derived", "measured", "unsourced")
SUFFIX = ".toml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One number of a profile, as an interval; `kind` says how far to trust it."""

    low: float
    high: float
    kind: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One level of the memory hierarchy, as one core sees it; what is None is not known (memory: no limit)."""

    name: str
    capacity_bytes: Figure | None
    bandwidth_gb_s: Figure | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """A processor. Cycles are of ONNX Runtime's own loops, with their operands in the first cache.

    Attributes:
        emulate_as: QEMU's name of the core, or of the nearest one that it has; None where there is none.
        cpu_part: the core's part number in /proc/cpuinfo.
        four_row_cycles: of 256 multiply-adds in the matrix product's loop over four rows.
        one_row_cycles: of 64 multiply-adds in its loop over one row.
        unit_step_cycles: of one hidden unit's activations and products at one step, outside the matrix product.
        step_cycles: of one recurrent step outside its products and units.
        call_cycles: of one `session.run` outside its operators' arithmetic, Python's binding included.
    """

    name: str
    title: str
    core: str
    emulate_as: str | None
    cpu_part: str | None
    clock_ghz: Figure
    four_row_cycles: Figure
    one_row_cycles: Figure
    unit_step_cycles: Figure
    step_cycles: Figure
    call_cycles: Figure
    levels: tuple[Level, ...]

    def figures(self) -> dict[str, Figure]:
        """Return every number by name, for listing with its source."""
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        found = {name: value for name, value in own.items() if isinstance(value, Figure)}
        for level in self.levels:
            for name in ("capacity_bytes", "bandwidth_gb_s"):
                if (figure := getattr(level, name)) is not None:
                    found[f"{level.name} {name}"] = figure
        return found


def user_folder() -> Path:
    """Return the folder of the user's own profiles."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "rnn-toolchain" / "profiles"


def profile_files() -> dict[str, Path]:
    """Return every profile's file by name; a user's own stands in for a shipped one of the same name."""
    return {path.stem: path for folder in (SHIPPED, user_folder()) for path in sorted(folder.glob(f"*{SUFFIX}"))}


def find_profile(name: str) -> Profile:
    """Read a profile by its name, or by the path of its file.

    Raises:
        BenchError: there is none, or it is not a complete profile.
    """
    path = Path(name) if name.endswith(SUFFIX) else profile_files().get(name)
    if path is None:
        known = ", ".join(profile_files())
        raise BenchError(f"device profile {name!r}: is not known; expected one of: {known}; or a {SUFFIX} file.")
    return read_profile(path)


def read_profile(path: Path) -> Profile:
    """Read and check one file.

    Raises:
        BenchError: it cannot be read, or a value is missing, unknown, of a wrong type or without a source.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BenchError(f"{path}: cannot be read ({error.strerror}); expected a device profile.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BenchError(f"{path}: is not TOML ({error}); expected a device profile. See docs/devices.md.") from error
    return profile_of(table, name=path.stem, where=str(path))


def profile_of(table: Mapping[str, Any], *, name: str, where: str) -> Profile:
    """Check a parsed profile; `where` names it in messages.

    Raises:
        BenchError: as `read_profile`.
    """
    texts = {"title": str, "core": str, "emulate_as": str, "cpu_part": str}
    numbers = [field.name for field in fields(Profile) if field.type == "Figure"]
    for key in table:
        if key not in texts and key not in numbers and key != "levels":
            raise BenchError(
                f"{where}: {key!r} is no value of a profile; expected {', '.join([*texts, *numbers, 'levels'])}."
            )
    for key in texts:
        if not isinstance(table.get(key, "" if key in ("emulate_as", "cpu_part") else None), str):
            raise BenchError(f"{where}: {key} is {table.get(key)!r}; expected a text. Add it.")
    return Profile(
        name=name,
        title=table["title"],
        core=table["core"],
        emulate_as=table.get("emulate_as"),
        cpu_part=table.get("cpu_part"),
        levels=_levels(table.get("levels"), where),
        **{key: _figure(table.get(key), f"{where}: {key}") for key in numbers},
    )


def _levels(tables: Any, where: str) -> tuple[Level, ...]:
    if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        raise BenchError(f"{where}: levels is {tables!r}; expected [[levels]] from the first cache to memory.")
    levels = []
    for table in tables:
        unknown = set(table) - {"name", "capacity_bytes", "bandwidth_gb_s"}
        if unknown or not isinstance(table.get("name"), str):
            raise BenchError(
                f"{where}: a level has the keys {sorted(table)}; expected name, capacity_bytes, bandwidth_gb_s."
            )
        figures = {
            key: _figure(table[key], f"{where}: {table['name']} {key}") if key in table else None
            for key in ("capacity_bytes", "bandwidth_gb_s")
        }
        levels.append(Level(name=table["name"], **figures))
    if any(level.capacity_bytes is None for level in levels[:-1]) or levels[-1].capacity_bytes is not None:
        raise BenchError(f"{where}: expected a capacity for every level but the last, which is memory.")
    if levels[-1].bandwidth_gb_s is None:
        raise BenchError(
            f"{where}: {levels[-1].name} has no bandwidth_gb_s; expected one, because all else leans on it."
        )
    return tuple(levels)


def _figure(table: Any, where: str) -> Figure:
    """Read `{value | low, high, kind, source}`."""
    if not isinstance(table, dict):
        raise BenchError(f"{where} is {table!r}; expected a number with its source: {{ value, kind, source }}.")
    if set(table) - {"kind", "source"} not in ({"value"}, {"low", "high"}):
        raise BenchError(f"{where} has the keys {sorted(table)}; expected value (or low and high), kind, source.")
    low: Any = table.get("low", table.get("value"))
    high: Any = table.get("high", table.get("value"))
    if not all(isinstance(number, (int, float)) and number > 0 for number in (low, high)) or low > high:
        raise BenchError(f"{where} is {low!r} to {high!r}; expected positive numbers, the lower one first.")
    source, kind = table.get("source"), table.get("kind")
    if not isinstance(source, str) or not source.strip():
        raise BenchError(f"{where} has no source; expected where the number comes from. Add `source = …`.")
    if kind not in KINDS:
        raise BenchError(f"{where}: kind is {kind!r}; expected one of: {', '.join(KINDS)}.")
    return Figure(low=float(low), high=float(high), kind=kind, source=source.strip())
