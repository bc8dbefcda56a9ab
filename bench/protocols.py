"""Published ways to time a language model, so that a figure can be put beside a paper's."""

from __future__ import annotations

from dataclasses import dataclass

from toolchain.errors import BenchError


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """Sequence length and sequences at once, and where that is said."""

    steps: int
    batch: int
    source: str


PROTOCOLS = {
    "iss": Protocol(steps=30, batch=10, source="Wen et al. 2018, arXiv 1709.05027, section 4.1"),
}


def protocol_named(name: str) -> Protocol:
    """Return a protocol, or raise BenchError."""
    if name not in PROTOCOLS:
        raise BenchError(f"protocol {name!r}: is not known; expected one of: {', '.join(PROTOCOLS)}.")
    return PROTOCOLS[name]
