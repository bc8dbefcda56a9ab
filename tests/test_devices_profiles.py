"""Profiles: every number has a source, and a file that lacks one is refused by name."""

from __future__ import annotations

import copy
import platform
import tomllib

import pytest
from click.testing import CliRunner
from toolchain.bench import runner
from toolchain.bench.devices import naming, profiles

from toolchain.cli import cli
from toolchain.errors import BenchError

NAMES = ("graviton2", "graviton3", "graviton4", "orin-nano", "rpi3", "rpi4", "rpi5")
FIGURE = {"value": 1.0, "kind": "derived", "source": "somewhere"}
TABLE = {
    "title": "Board", "core": "Core",
    **dict.fromkeys(
        ("clock_ghz", "four_row_cycles", "one_row_cycles", "unit_step_cycles", "step_cycles", "call_cycles"), FIGURE
    ),
    "levels": [{"name": "L1D", "capacity_bytes": FIGURE}, {"name": "DRAM", "bandwidth_gb_s": FIGURE}],
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_profiles_of_the_user(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def test_the_profiles_that_come_along_are_the_promised_ones():
    assert tuple(profiles.profile_files()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_number_in_a_file_is_read_and_has_a_source(name):
    """Counted in the file itself, so that no number is passed over."""
    table = tomllib.loads((profiles.SHIPPED / f"{name}.toml").read_text())
    levels = table.pop("levels")
    in_file = [key for key, value in table.items() if isinstance(value, dict)]
    in_levels = [f"{level['name']} {key}" for level in levels for key in level if key != "name"]
    figures = profiles.find_profile(name).figures()
    assert sorted(figures) == sorted([*in_file, *in_levels])
    for figure in figures.values():
        assert len(figure.source) > 10
        assert 0 < figure.low <= figure.high


@pytest.mark.parametrize("name", NAMES)
def test_caches_grow_outwards_and_slow_down(name):
    levels = profiles.find_profile(name).levels
    capacities = [level.capacity_bytes.low for level in levels[:-1]]
    assert capacities == sorted(capacities)
    known = [level.bandwidth_gb_s.low for level in levels if level.bandwidth_gb_s is not None]
    assert known == sorted(known, reverse=True)


def without(key):
    return {name: value for name, value in TABLE.items() if name != key}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (TABLE | {"clock_ghz": {"value": 1.5, "kind": "derived"}},
         "f.toml: clock_ghz has no source; expected where the number comes from. Add `source = …`."),
        (TABLE | {"clock_ghz": {"value": 1.5, "kind": "derived", "source": " "}},
         "f.toml: clock_ghz has no source; expected where the number comes from. Add `source = …`."),
        (TABLE | {"clock_ghz": 1.5},
         "f.toml: clock_ghz is 1.5; expected a number with its source: { value, kind, source }."),
        (TABLE | {"clock_ghz": FIGURE | {"kind": "guessed"}},
         "f.toml: clock_ghz: kind is 'guessed'; expected one of: published, derived, measured, unsourced."),
        (TABLE | {"clock_ghz": {"low": 2, "high": 1, "kind": "derived", "source": "x"}},
         "f.toml: clock_ghz is 2 to 1; expected positive numbers, the lower one first."),
        (TABLE | {"clock_ghz": FIGURE | {"value": 0}},
         "f.toml: clock_ghz is 0 to 0; expected positive numbers, the lower one first."),
        (TABLE | {"clock_ghz": {"low": 2, "kind": "derived", "source": "x"}},
         "f.toml: clock_ghz has the keys ['kind', 'low', 'source']; expected value (or low and high), kind, source."),
        (without("call_cycles"),
         "f.toml: call_cycles is None; expected a number with its source: { value, kind, source }."),
        (without("title"), "f.toml: title is None; expected a text. Add it."),
        (TABLE | {"colour": "red"},
         "f.toml: 'colour' is no value of a profile; expected title, core, emulate_as, cpu_part, clock_ghz, "
         "four_row_cycles, one_row_cycles, unit_step_cycles, step_cycles, call_cycles, levels."),
        (TABLE | {"levels": []}, "f.toml: levels is []; expected [[levels]] from the first cache to memory."),
        (TABLE | {"levels": TABLE["levels"][:1]},
         "f.toml: expected a capacity for every level but the last, which is memory."),
        (TABLE | {"levels": [*TABLE["levels"][:1], {"name": "DRAM"}]},
         "f.toml: DRAM has no bandwidth_gb_s; expected one, because all else leans on it."),
        (TABLE | {"levels": [{"name": "L1D", "size": 3}]},
         "f.toml: a level has the keys ['name', 'size']; expected name, capacity_bytes, bandwidth_gb_s."),
    ],
)  # fmt: skip
def test_a_wrong_profile_is_refused_by_the_value_that_is_wrong(table, message):
    with pytest.raises(BenchError) as error:
        profiles.profile_of(copy.deepcopy(table), name="f", where="f.toml")
    assert str(error.value) == message


def test_a_profile_of_the_users_own_is_found_by_name_and_by_path(tmp_path):
    text = (profiles.SHIPPED / "rpi4.toml").read_text().replace("Raspberry Pi 4 Model B", "My board")
    (tmp_path / "board.toml").write_text(text)
    assert naming.resolve_device(str(tmp_path / "board.toml")).profile.title == "My board"
    folder = profiles.user_folder()
    folder.mkdir(parents=True)
    (folder / "mine.toml").write_text(text)
    (folder / "rpi5.toml").write_text(text)
    assert naming.resolve_device("mine").method == "estimated"
    assert naming.resolve_device("qemu:rpi5").profile.title == "My board"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("qemu:rpi9", f"device profile 'rpi9': is not known; expected one of: {', '.join(NAMES)}; or a .toml file."),
        ("missing.toml", "missing.toml: cannot be read (No such file or directory); expected a device profile."),
        ("gpu", f"device 'gpu': is not known; expected one of: cpu, arm, {', '.join(NAMES)}; or qemu:PROFILE, "
         "ssh://user@host, a profile's file. `toolchain devices` lists them."),
    ],
)  # fmt: skip
def test_a_device_that_does_not_exist_is_refused(name, message):
    with pytest.raises(BenchError) as error:
        naming.resolve_device(name)
    assert str(error.value) == message


def test_this_machines_own_profile_is_asked_for_before_it_is_there():
    with pytest.raises(BenchError, match=r"'host': this machine's own profile was not measured yet; .* calibrate`\.$"):
        naming.resolve_device("host")


def test_arm_says_on_the_first_line_which_method_it_takes(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # nothing is installed there
    if platform.machine() != "aarch64":
        found = naming.resolve_device("arm")
        assert (found.method, found.profile.name) == ("estimated", "rpi4")
        assert found.note.startswith("device arm: estimated as rpi4 (Raspberry Pi 4 Model B). To run aarch64 code: ")
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(runner, "elf_machine", lambda: 183)
    assert naming.resolve_device("arm").method == "measured"
    monkeypatch.setattr(runner, "elf_machine", lambda: 62)  # qemu-user on x86-64: aarch64 by name only
    assert naming.resolve_device("arm").method != "measured"


def test_the_list_names_every_device_and_every_source(monkeypatch):
    result = CliRunner().invoke(cli, ["devices"])
    assert result.exit_code == 0, result.output
    for name in ("cpu ", "ssh://", "qemu:PROFILE", "arm ", *(f"\n{name}: " for name in NAMES)):
        assert name in result.output
    for name in NAMES:
        for figure in profiles.find_profile(name).figures().values():
            assert figure.source in result.output


def test_what_is_missing_is_listed_with_the_command_that_installs_it(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    output = CliRunner().invoke(cli, ["devices"]).output
    assert "apt-get install --no-install-recommends qemu-user gcc libc6-dev && toolchain devices install qemu" in output
    assert "apt-get install openssh-client" in output
    result = CliRunner().invoke(cli, ["devices", "install", "qemu"], catch_exceptions=True)
    assert str(result.exception) == (
        "device 'qemu': this machine lacks a tool; expected QEMU and a C compiler. Run `apt-get install "
        "--no-install-recommends qemu-user gcc libc6-dev`."
    )
