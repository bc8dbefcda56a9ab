"""What two models are run on to be compared: lengths, batch sizes, starts, and random inputs for each.

The same case always gets the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from toolchain.comparison import Arrays, Case
from toolchain.graph.branches import BranchPath, switches
from toolchain.graph.program import StatePair
from toolchain.interface import Feed, ModelInterface, plan_feeds
from toolchain.runtime import run

STEPS = (1, 3, 20)
BATCHES = (1, 2)
# Models of raw audio refuse so few samples: where none of STEPS runs, the first three of these that do.
FRAME_STEPS = tuple(range(32, 1601, 32))
NUM_FRAME_STEPS = 3
CHAINED_CALLS = 3


def lengths_to_try(interface: ModelInterface) -> Iterator[tuple[int, ...]]:
    """Yield the lengths to try, and more in case none of them runs; one that the file fixes is the only one."""
    fixed = interface.fixed("time")
    yield (fixed,) if fixed else STEPS
    if not fixed:
        yield from ((length,) for length in FRAME_STEPS)


def cases_to_try(
    interface: ModelInterface,
    lengths: Sequence[int],
    carried: Sequence[StatePair],
    compact_state: bool,
    forced: BranchPath,
) -> Iterator[Case]:
    """Yield the shapes to try; a batch size that the file fixes is tried at that size only."""
    fixed = interface.fixed("batch")
    calls = CHAINED_CALLS if carried else 1
    for steps in lengths:
        for batch in (fixed,) if fixed else BATCHES:
            yield Case(steps=steps, batch=batch, calls=calls, random_state=False, forced=forced)
            if interface.has_state and not compact_state:
                yield Case(steps=steps, batch=batch, calls=1, random_state=True, forced=forced)


def without_state(outputs: Arrays, carried: Sequence[StatePair]) -> Arrays:
    """Return the outputs that are compared."""
    states = {output for _, output in carried}
    return {name: array for name, array in outputs.items() if name not in states}


def case_feeds(
    interface: ModelInterface, case: Case, carried: Sequence[StatePair], seed: int, names: Sequence[str] = ()
) -> list[Arrays]:
    """Build the inputs of every call of a case; the same case always gets the same numbers.

    `names` are the If nodes of a model that `save_switched` wrote.
    """
    rng = np.random.default_rng((seed, case.steps, case.batch, case.random_state))
    states = {name for name, _ in carried}
    forced = {name: np.array(on) for name, on in switches(names, case.forced).items()}
    calls = []
    for _ in range(case.calls):
        feeds = plan_feeds(interface, steps=case.steps, batch=case.batch)
        random = {feed.name for feed in feeds if case.random_state and _is_state(interface, feed, states)}
        arrays = {feed.name: feed_array(feed, rng, random_state=feed.name in random) for feed in feeds}
        calls.append(arrays | forced)
    return calls


def _is_state(interface: ModelInterface, feed: Feed, states: set[str]) -> bool:
    return feed.name in states or any(i.name == feed.name and i.role == "state" for i in interface.inputs)


def feed_array(feed: Feed, rng: np.random.Generator, *, random_state: bool = False) -> npt.NDArray[Any]:
    """Return random contents for one input; states are zero unless asked otherwise."""
    if feed.kind == "ids":
        return rng.integers(0, feed.value, feed.shape).astype(feed.dtype)
    if feed.kind == "normal":
        return rng.standard_normal(feed.shape).astype(feed.dtype)
    if random_state:
        return (0.5 * rng.standard_normal(feed.shape)).astype(feed.dtype)  # a hidden state stays within (-1, 1)
    return np.full(feed.shape, feed.value, dtype=feed.dtype)


def with_zero_state(feeds: Arrays, candidate: ModelInterface, case: Case, carried: Sequence[StatePair]) -> Arrays:
    """Replace the states by zeros of the candidate's own shapes."""
    states = {name for name, _ in carried}
    own = plan_feeds(candidate, steps=case.steps, batch=case.batch)
    return {**feeds, **{feed.name: np.zeros(feed.shape, feed.dtype) for feed in own if feed.name in states}}


def run_case(session: Any, calls: Sequence[Arrays], carried: Sequence[StatePair]) -> list[Arrays]:
    """Run calls in a row, each fed the state of the one before."""
    results: list[Arrays] = []
    for feeds in calls:
        state = {into: results[-1][out] for into, out in carried} if results else {}
        results.append(run(session, {**feeds, **state}))
    return results
