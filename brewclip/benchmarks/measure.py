"""Measurement on a shared machine: two implementations run alternately and are compared by ratio, with its spread.

Figures without a baseline, such as memory, are compared with a limit.
"""

import contextlib
import os
import platform
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class BenchmarkOptions:
    """Options of every benchmark."""

    json: str = ""
    """JSON file for the results; empty prints them only."""


@dataclass(frozen=True)
class Comparison:
    """Rates of our implementation and of a baseline, measured alternately.

    Attributes:
        name: what was measured.
        ours, theirs: rates of each run, in `unit`; runs k of both belong to one round.
        target: minimum ratio; 0 for none.
    """

    name: str
    ours: tuple[float, ...]
    theirs: tuple[float, ...]
    unit: str
    target: float = 0.0

    @property
    def ratios(self) -> list[float]:
        """Ours over theirs, of each pair of runs, ascending."""
        return sorted(ours / theirs for ours, theirs in zip(self.ours, self.theirs, strict=True))

    @property
    def ratio(self) -> float:
        """Median of the ratios."""
        return statistics.median(self.ratios)

    def line(self) -> str:
        """Return a summary line: the ratio with its spread, both medians, and the target."""
        ours, theirs = statistics.median(self.ours), statistics.median(self.theirs)
        target = f"; target {self.target:g}x {'reached' if self.ratio >= self.target else 'MISSED'}" * bool(self.target)
        return (
            f"{self.name}: {self.ratio:.2f}x ({self.ratios[0]:.2f} to {self.ratios[-1]:.2f}, {len(self.ours)} pairs), "
            f"{show(ours)} against {show(theirs)} {self.unit}{target}"
        )

    def record(self) -> dict[str, object]:
        """Return the entry for the JSON file."""
        entry = {"name": self.name, "unit": self.unit, "target": self.target, "ours": self.ours, "theirs": self.theirs}
        return entry | {"ratio": self.ratio, "ratio_spread": [self.ratios[0], self.ratios[-1]]}


@dataclass(frozen=True)
class Limit:
    """A figure that must not be above a limit.

    Attributes:
        name: what was measured.
        values: of each run, in `unit`; their median counts.
        most: the limit; 0 if the figure is only reported.
    """

    name: str
    values: tuple[float, ...]
    unit: str
    most: float = 0.0

    @property
    def value(self) -> float:
        """Median of the runs."""
        return statistics.median(self.values)

    def line(self) -> str:
        """Return a summary line."""
        spread = f" ({show(min(self.values))} to {show(max(self.values))})" * (len(self.values) > 1)
        verdict = "reached" if self.value <= self.most else "MISSED"
        limit = f"; at most {show(self.most)} {verdict}" * bool(self.most)
        return f"{self.name}: {show(self.value)} {self.unit}{spread}{limit}"

    def record(self) -> dict[str, object]:
        """Return the entry for the JSON file."""
        return {"name": self.name, "unit": self.unit, "most": self.most, "value": self.value, "values": self.values}


@dataclass(frozen=True)
class Peer:
    """What one would use instead of our implementation.

    Attributes:
        name: for the table.
        run: runs once and returns its rate.
        target: minimum ratio of ours to it; 0 for none.
    """

    name: str
    run: Callable[[], float]
    target: float = 0.0


def show(value: float) -> str:
    """Return a number with three significant digits, or as an integer if it is large."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def print_limit(limit: Limit) -> Limit:
    """Print the line of a limit and return the limit."""
    print(limit.line(), flush=True)
    return limit


def compare_in_turn(
    name: str,
    ours: Callable[[], float],
    theirs: Callable[[], float],
    *,
    num_pairs: int,
    unit: str,
    target: float = 0.0,
) -> Comparison:
    """Run both implementations alternately, as `compare_with_peers` does with one peer, and print the result.

    Args:
        name: what is measured.
        ours: runs once and returns its rate.
        theirs: as `ours`.
        num_pairs: measured runs of each.
        unit: of the rates.
        target: minimum ratio; 0 for none.
    """
    (comparison,) = compare_with_peers(name, ours, [Peer("", theirs, target)], num_rounds=num_pairs, unit=unit)
    print(comparison.line(), flush=True)
    return comparison


def compare_with_peers(
    name: str,
    ours: Callable[[], float],
    peers: Sequence[Peer],
    *,
    num_rounds: int,
    unit: str,
    warm_up: bool = True,
) -> list[Comparison]:
    """Run our implementation and each peer in turn, with the order reversed from round to round; print nothing.

    Args:
        name: what is measured; `, against PEER` is appended for a peer with a name.
        ours: runs once and returns its rate.
        peers: what it is compared with.
        num_rounds: measured runs of each.
        unit: of the rates.
        warm_up: run each once before, without measuring it.

    Returns:
        One comparison for each peer, all with the same runs of ours.
    """
    sides = [ours, *(peer.run for peer in peers)]
    if warm_up:
        for side in sides:
            side()
    rates: list[list[float]] = [[] for _ in sides]
    for number in range(num_rounds):
        places = range(len(sides))
        for place in places if number % 2 == 0 else reversed(places):
            rates[place].append(sides[place]())
    names = [f"{name}, against {peer.name}" if peer.name else name for peer in peers]
    return [
        Comparison(title, tuple(rates[0]), tuple(theirs), unit, peer.target)
        for title, theirs, peer in zip(names, rates[1:], peers, strict=True)
    ]


@contextlib.contextmanager
def environment_set(variables: dict[str, str]) -> Iterator[None]:
    """Set environment variables temporarily, by which storage, boto3 and loader processes find the server."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def machine_line() -> str:
    """Describe the machine: processor, cores, load before the run, Python version."""
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as file:
            model = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), model)
    except OSError:
        pass  # not Linux: the architecture only
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{model}, {cores} cores, load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}"
