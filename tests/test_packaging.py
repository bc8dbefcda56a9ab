"""What an installation from a wheel would hold: an editable one hides packages that are not listed."""

from __future__ import annotations

import importlib
import tomllib
from pathlib import Path

import pytest

import toolchain


@pytest.fixture
def project(request: pytest.FixtureRequest) -> dict[str, object]:
    return tomllib.loads((request.config.rootpath / "pyproject.toml").read_text())


def test_every_package_is_listed(project: dict[str, object], request: pytest.FixtureRequest) -> None:
    root: Path = request.config.rootpath
    inside = {".".join(path.parent.relative_to(root).parts) for path in (root / "toolchain").rglob("__init__.py")}
    listed = project["tool"]["setuptools"]["packages"]  # type: ignore[index]
    assert set(listed) == inside | {"toolchain.models", "toolchain.bench", "toolchain.bench.devices"}


def test_the_version_is_said_once_and_alike(project: dict[str, object]) -> None:
    assert project["project"]["version"] == toolchain.__version__  # type: ignore[index]


def test_no_public_name_is_hidden_by_the_module_that_it_comes_from() -> None:
    for home in toolchain._HOMES.values():
        importlib.import_module(home)
    assert not [name for name in toolchain._HOMES if not callable(getattr(toolchain, name))]


def test_every_public_name_can_be_loaded() -> None:
    assert all(getattr(toolchain, name) for name in toolchain.__all__)
