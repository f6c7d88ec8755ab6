# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""What a run has shown: counts, bars, a text and a picture."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ...testing.history import PRIMARY, PROMISES, Unit, Violation, violations
from ..soak.run import Served
from .faults import NO_SERVER, SIGSTOP, Span
from .worker import Outcome, Report, Work

#: Seconds from the call of a promotion to the first write that succeeds.
FIRST_WRITE = 2.0

CALM = "(none)"


@dataclass(frozen=True)
class Row:
    """How long units of work took under a kind of fault

    :param reads: seconds of those that only read, sorted
    :param writes: and of the others
    :param failed: how many of those that only read have failed
    """

    reads: list[float]
    writes: list[float]
    failed: int


@dataclass
class Result(Served):
    """What a run has shown

    :param seed: of the run
    :param begun: nanoseconds
    :param ended: nanoseconds
    :param report: what the processes have done
    :param history: the units of work that were committed, for the checker
    :param found: how often each mark is there in the end
    :param versions: of the rows that are counted up, in the end
    :param spans: the faults
    :param promotions: when each was asked for, in nanoseconds
    :param hang: seconds that a read may wait for a server that hangs
    """

    seed: str
    begun: int
    ended: int
    report: Report
    history: list[Unit]
    found: dict[str, int]
    versions: dict[int, int]
    spans: list[Span]
    promotions: list[int]
    hang: float

    @cached_property
    def reads(self) -> list[Work]:
        """Return the units of work that only read"""
        return [x for x in self.report.done if x.mark is None]

    @cached_property
    def writes(self) -> list[Work]:
        """Return the units of work that write"""
        return [x for x in self.report.done if x.mark is not None]

    @cached_property
    def failed(self) -> list[Work]:
        """Return those that only read and failed, though a server was there"""
        dark = [x for x in self.spans if x.kind == NO_SERVER]
        return [
            x
            for x in self.reads
            if x.outcome is not Outcome.DONE and not any(during(x, dark))
        ]

    def marks(self, *outcomes: Outcome) -> list[str]:
        """Return the marks of the units of work with some outcome"""
        return [str(x.mark) for x in self.writes if x.outcome in outcomes]

    @property
    def lost(self) -> list[str]:
        """Return what was acknowledged and isn't there"""
        return [x for x in self.marks(Outcome.DONE) if x not in self.found]

    @property
    def duplicated(self) -> list[str]:
        """Return what is there more than once"""
        return [mark for mark, count in self.found.items() if count > 1]

    @property
    def undone(self) -> list[str]:
        """Return what is there though it was said to have failed"""
        return [x for x in self.marks(Outcome.FAILED) if x in self.found]

    @property
    def miscounted(self) -> list[int]:
        """Return the rows that were not counted up once for each write"""
        counts = Counter(
            write.key for unit in self.history for write in unit.writes
        )
        return [x for x, count in self.versions.items() if counts[x] != count]

    @cached_property
    def stale(self) -> list[Violation]:
        """Return the reads that break what ``session`` promises"""
        return violations(self.history, PROMISES["session"])

    @cached_property
    def first_writes(self) -> list[float]:
        """Return seconds from each promotion to the first write after it"""
        done = sorted(x.ended for x in self.writes if x.outcome is Outcome.DONE)
        return [
            min((x - at for x in done if x > at), default=10**12) / 1e9
            for at in self.promotions
        ]

    @cached_property
    def machine(self) -> float:
        """Return how many seconds the machine itself has stalled, at most"""
        return max((b - a for a, b in self.report.beats), default=0) / 1e9

    @cached_property
    def rows(self) -> Mapping[str, Row]:
        """Return how long units of work took, by the kind of fault"""
        kinds: dict[str, list[Work]] = {CALM: []}
        for span in self.spans:
            kinds.setdefault(_name(span), [])

        for done in self.report.done:
            for name in {_name(x) for x in during(done, self.spans)} or {CALM}:
                kinds[name].append(done)

        failed = set(map(id, self.failed))
        return {
            name: Row(
                sorted(seconds(x) for x in done if x.mark is None),
                sorted(seconds(x) for x in done if x.mark is not None),
                sum(id(x) in failed for x in done),
            )
            for name, done in sorted(kinds.items())
        }

    @property
    def longest_hang(self) -> float:
        """Return the longest that a read has waited for a frozen server"""
        return max(
            (
                row.reads[-1]
                for name, row in self.rows.items()
                if name.startswith(SIGSTOP) and row.reads
            ),
            default=0.0,
        )

    @property
    def missed(self) -> dict[str, str]:
        """Return the bars that were missed, with what was found instead"""
        bars = {
            "failed reads": len(self.failed),
            "lost": len(self.lost),
            "duplicated": len(self.duplicated),
            "undone": len(self.undone),
            "miscounted": len(self.miscounted),
            "stale": len(self.stale),
        }
        missed = {name: str(count) for name, count in bars.items() if count}
        # What the machine stalls by itself is nobody's fault.
        if self.longest_hang > self.hang + self.machine:
            missed["hang"] = f"{self.longest_hang:.2f} s"

        if max(self.first_writes, default=0.0) > FIRST_WRITE + self.machine:
            missed["first write"] = f"{max(self.first_writes):.2f} s"

        return missed

    def __str__(self) -> str:
        """Return it as a text"""
        served = ", ".join(
            f"{name} {count:,}" for name, count in sorted(self.served.items())
        )
        unknown = self.marks(Outcome.UNKNOWN)
        there = sum(mark in self.found for mark in unknown)
        firsts = ", ".join(f"{x:.2f} s" for x in self.first_writes)
        lines = [
            f"seed {self.seed}: {(self.ended - self.begun) / 1e9:.0f} s, "
            f"{len(self.spans)} faults, {len(self.reads):,} units of work that "
            f"only read, {len(self.writes):,} that write",
            f"reads of the first: {self.from_replicas:.0%} from replicas "
            f"({served})",
            f"failed read-only units of work      {len(self.failed):,}",
            f"acknowledged writes                 "
            f"{len(self.marks(Outcome.DONE)):,}",
            f"  lost                              {len(self.lost):,}",
            f"  duplicated                        {len(self.duplicated):,}",
            f"  failed, and there all the same    {len(self.undone):,}",
            f"  rows with another count           {len(self.miscounted):,}",
            f"failed writes                       "
            f"{len(self.marks(Outcome.FAILED)):,}",
            f"writes with an unknown outcome      {len(unknown):,} "
            f"({there:,} are there)",
            f"stale reads against session         {len(self.stale):,}",
            f"longest read under SIGSTOP          {self.longest_hang:.2f} s, "
            f"of {self.hang:.2f} s allowed",
            f"promotion to first write            {firsts or '-'}, of "
            f"{FIRST_WRITE:.2f} s allowed",
            f"longest stall of the machine itself {self.machine:.2f} s",
            "",
            f"{'fault':34}{'reads':>8}{'failed':>8}{'p99.9':>9}"
            f"{'longest':>9}{'write':>9}",
        ]
        for name, row in self.rows.items():
            lines.append(
                f"{name:34}{len(row.reads):8,}{row.failed:8,}"
                f"{percentile(row.reads, 0.999):7.2f} s"
                f"{percentile(row.reads, 1.0):7.2f} s"
                f"{percentile(row.writes, 1.0):7.2f} s"
            )

        return "\n".join(lines)

    def write(self, directory: Path, name: str) -> list[Path]:
        """Write the text, the failures and the picture

        :param directory: where; it is made
        :param name: of the files, without a suffix
        :rtype: their paths
        """
        from .picture import draw

        directory.mkdir(parents=True, exist_ok=True)
        text = directory / f"{name}.txt"
        text.write_text("\n".join([str(self), "", *self.details()]) + "\n")
        picture = directory / f"{name}.png"
        draw(self, picture)
        return [text, picture]

    def details(self) -> Iterable[str]:
        """Return each failure, each stale read and each fault"""
        for span in self.spans:
            yield (
                f"{self.at(span.begun)} to {self.at(span.ended)} {span.kind}: "
                f"{span.server}"
            )

        for done in [*self.failed, *self.writes]:
            if done.outcome is not Outcome.DONE:
                names = ", ".join(map(_name, during(done, self.spans)))
                yield (
                    f"\n{self.at(done.begun)} to {self.at(done.ended)} "
                    f"{done.outcome} {done.mark or 'read-only'} "
                    f"({names or CALM})\n{done.error}"
                )

        yield from map(str, self.stale)
        for name in ("lost", "duplicated", "undone", "miscounted"):
            yield f"{name}: {getattr(self, name)}"

    def at(self, when: int) -> str:
        """Return a time as seconds from the beginning"""
        return f"{(when - self.begun) / 1e9:.3f}"


def during(done: Work, spans: Iterable[Span]) -> list[Span]:
    """Return the faults under which a unit of work ran

    :param done: the unit of work
    :param spans: of all faults
    """
    return [x for x in spans if done.begun < x.ended and x.begun < done.ended]


def seconds(done: Work) -> float:
    """Return how long a unit of work took"""
    return (done.ended - done.begun) / 1e9


def percentile(values: list[float], part: float) -> float:
    """Return the value below which a part of them is

    :param values: sorted
    :param part: 1.0: the greatest
    """
    return (
        values[min(int(len(values) * part), len(values) - 1)] if values else 0.0
    )


def _name(span: Span) -> str:
    return f"{span.kind}, primary" if span.server == PRIMARY else span.kind
