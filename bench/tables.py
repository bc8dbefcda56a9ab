"""Write what is on record into README.md and docs: the tables out of bench/results.

python -m toolchain.bench.tables            writes
python -m toolchain.bench.tables --check    exits 1 if a page shows something else than the files say

A page has places for it, and everything between their two comments is written here:

    <!-- results: NAME -->
    ...
    <!-- end of results -->

NAME is a function of `result_pages`, or `source MODULE.py NAME, NAME`: those definitions as they stand in that file.
The pictures that pages show are written with them.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import click

from toolchain.errors import BenchError, ToolchainError
from toolchain.files import write_text

from .result_pages import PICTURES, PLACES

_IGNORE = re.compile(r"  # type: ignore\[[^]]*\]")  # of no use to a reader
_PLACE = re.compile(r"(<!-- results: ([^>]+?) -->\n).*?(<!-- end of results -->)", re.S)


def pages(root: Path) -> list[Path]:
    """Return every page that may show results."""
    return [root / "README.md", *sorted((root / "docs").glob("*.md"))]


def with_results(text: str, root: Path) -> str:
    """Return a page's text with every place filled from the files as they are now.

    Args:
        text: of the page.
        root: of the repository.

    Raises:
        BenchError: a place has a name that nothing fills.
    """
    return _PLACE.sub(lambda found: f"{found[1]}{_content(found[2], root).strip()}\n{found[3]}", text)


def rendered(root: Path) -> dict[Path, str]:
    """Return what every page and every picture should hold, by its path."""
    texts = {page: with_results(page.read_text("utf-8"), root) for page in pages(root)}
    drawn = {root / "docs" / name: draw(root / "bench" / "results") for name, draw in PICTURES.items()}
    return texts | {path: picture for path, picture in drawn.items() if picture is not None}


def outdated(root: Path) -> list[Path]:
    """Return the pages and pictures that show something else than the files say."""
    return [path for path, text in rendered(root).items() if not path.is_file() or path.read_text("utf-8") != text]


def definitions(path: Path, names: str) -> str:
    """Return functions and classes as they stand in a file, as a Markdown block.

    Raises:
        BenchError: the file does not define one.
    """
    text = path.read_text("utf-8")
    known = {node.name: node for node in ast.parse(text).body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    wanted = [name.strip() for name in names.split(",")]
    missing = [name for name in wanted if name not in known]
    if missing:
        raise BenchError(f"{path.name}: defines no {missing[0]}; expected one of {', '.join(known)}. Correct the page.")
    parts = [_IGNORE.sub("", ast.get_source_segment(text, known[name]) or "") for name in wanted]
    return "```python\n" + "\n\n\n".join(parts) + "\n```"


def _content(name: str, root: Path) -> str:
    if name.startswith("source "):
        _, file, names = name.split(" ", 2)
        return definitions(root / file, names)
    if name not in PLACES:
        raise BenchError(f"results {name!r}: nothing fills it; expected one of {', '.join(PLACES)}. Correct the page.")
    return PLACES[name](root / "bench" / "results")


@click.command()
@click.option("--root", default=Path(), type=click.Path(path_type=Path, exists=True), help="Of the repository [here].")
@click.option("--check", is_flag=True, help="Write nothing; fail if something is outdated.")
def main(root: Path, check: bool) -> None:
    """Bring README.md and docs up to what bench/results says."""
    texts = rendered(root)
    changed = outdated(root)
    if check and changed:
        raise BenchError(
            f"{changed[0]}: shows something else than bench/results says; expected equal figures. Run "
            "`python -m toolchain.bench.tables`."
        )
    for path in changed:
        path.parent.mkdir(exist_ok=True)
        write_text(path, texts[path])
        click.echo(f"written: {path}")


if __name__ == "__main__":
    try:
        main()
    except ToolchainError as error:
        sys.exit(str(error))
