"""Print the operator support table of the documentation: `python -m toolchain.graph.support > docs/operators.md`."""

from __future__ import annotations

from toolchain.graph.operators import OPERATORS

_HEAD = """\
# Operators that the surgery understands

Generated from the code by `python -m toolchain.graph.support > docs/operators.md`. An operator that is not listed keeps
everything that it reads, and is named under "kept by": it can cost size, never correctness.

| operator | what is understood |
|---|---|
"""


def support_table() -> str:
    """Return the table as Markdown, one row per operator in alphabetical order."""
    return _HEAD + "".join(f"| {name} | {OPERATORS[name].note} |\n" for name in sorted(OPERATORS))


if __name__ == "__main__":
    print(support_table(), end="")
