"""Who is champion: promotions by a person, rollbacks, resets, and the record of all of them.

A change is made in the registry, which scorers follow; its row in the generations table is written
first, so that no champion's reason is ever missing, and finished afterwards. A process that dies in
between leaves a half that :meth:`Succession.record_champion` puts right.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from croupier.offline.champions import (
    ROLLBACK_COLUMNS,
    Rollback,
    interrupted_rollback,
    rollback_target,
)
from croupier.offline.generations import (
    generation_rows,
    record_generation,
    record_promotion,
    record_rollback,
    rollback_of,
    rollback_row,
)
from croupier.offline.promotion_report import (
    REPORT_PAGE,
    EventKind,
    PromotionReport,
    ReportEvent,
    note_event,
    read_report,
)
from croupier.offline.registry import Change
from croupier.policy.errors import GenerationError, InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from croupier.offline.lake import Lake
    from croupier.offline.registry import Registry
    from croupier.policy.generation import Generation
    from croupier.policy.loop import LoopConfig

__all__ = ("PASSED", "Succession")

PASSED = "the gate let it through"
"""What a report tells of a promotion on evidence."""


class Succession:
    """The champions of all loops.

    Parameters
    ----------
    lake, registry
        Where champions are recorded, and where they are made. Whoever changes anything holds the
        lake's lock.
    loops
        Configuration by name.
    """

    def __init__(self, lake: Lake, registry: Registry, loops: Mapping[str, LoopConfig]) -> None:
        self.lake = lake
        self.registry = registry
        self.loops = loops

    def generation(self, loop: str, number: int) -> Generation:
        """Read a generation of a configured loop back from the registry.

        Raises
        ------
        GenerationError
            If the registry doesn't have it, or not in order.
        """
        return self.registry.load(loop, number, self.loops[loop].exploration)

    def override(
        self, loop: str, number: int, *, now_us: int, reason: str, by: str | None = None
    ) -> None:
        """Make a generation champion because a person says so, and record who and why.

        Raises
        ------
        InvalidInputError
            If no reason is given, or if the generation is the champion already.
        GenerationError
            If the registry doesn't have the generation.
        """
        if not reason.strip():
            raise InvalidInputError("reason", "expected why the gate is overridden")
        self.require_challenger(loop, number)
        self.record_champion(loop, now_us)
        # First: whatever happens next, there is no champion whose override isn't on record.
        overridden = {"override_reason": reason, "override_by": by}
        record_generation(self.lake, {"loop": loop, "generation": number} | overridden)
        self.registry.promote(loop, number)
        self.note(loop, number, "overridden", reason, now_us, by=by or "")
        record_promotion(self.lake, loop, number, now_us=now_us, override_reason=reason)

    def rollback(
        self, loop: str, *, now_us: int, reason: str, by: str, to: int | None = None
    ) -> Rollback:
        """Make an earlier champion champion again because a person says so, and record who and why.

        Scorers pick it up as they do a promotion. The next night trains on from the restored
        champion; what counts as evidence for its challengers is what was decided since, see
        :func:`~croupier.offline.champions.evidence_since`.

        Parameters
        ----------
        loop
            Whose champion.
        now_us
            Now, in microseconds since the epoch.
        reason, by
            Why, at most 500 characters, and who.
        to
            The earlier champion to go back to, 0 for the cold start; the one before if None.

        Raises
        ------
        InvalidInputError
            If no reason is given, there is no earlier champion, or `to` is none.
        GenerationError
            If the registry doesn't have it any more, or not in order.
        """
        if not reason.strip():
            raise InvalidInputError("reason", "expected why the champion is rolled back")
        change = Change(by=by, ts=now_us, reason=reason)
        self.record_champion(loop, now_us)
        champion, rows = self.registry.champion(loop), generation_rows(self.lake, loop)
        target = rollback_target(rows, loop, champion, to)
        # What can't be read can't be served.
        self.generation(loop, target)
        done = Rollback(loop=loop, left=champion, restored=target, by=by, reason=reason)
        record_generation(self.lake, rollback_row(done, now_us))
        self.registry.roll_back(loop, target, change)
        self._finish_rollback(done, now_us)
        return done

    def reset(self, loop: str, *, now_us: int, reason: str, by: str) -> None:
        """Go back to the cold start because a person says so, and record who and why.

        Raises
        ------
        InvalidInputError
            If no reason is given.
        """
        if not reason.strip():
            raise InvalidInputError("reason", "expected why the loop is reset")
        self.record_champion(loop, now_us)
        former = self.registry.champion(loop)
        if former == 0:
            return
        explored = self.generation(loop, 0).exploration.describe()
        cold = {
            "generation": 0,
            "exploration": explored,
            "override_reason": reason,
            "override_by": by,
        }
        record_generation(self.lake, {"loop": loop} | cold)
        self.registry.reset(loop, Change(by=by, ts=now_us, reason=reason))
        self.note(loop, former, "reset", f"the cold start serves: {reason}", now_us, by=by)
        record_promotion(self.lake, loop, 0, now_us=now_us, override_reason=reason)

    def promotion_report(self, loop: str, number: int) -> PromotionReport | None:
        """What was found about a generation and became of it; None if it was never judged.

        Raises
        ------
        GenerationError
            If the registry doesn't have the generation, or its report can't be read.
        """
        return read_report(self.registry, loop, number)

    def report_place(self, loop: str, number: int) -> str:
        """Where the page of that report is: a path, or an address of MLflow's.

        Raises
        ------
        GenerationError
            If the registry doesn't have the generation.
        """
        return self.registry.place_of(loop, number, REPORT_PAGE)

    def record_champion(self, loop: str, now_us: int) -> None:
        """Put the registry's champion into the table, where it isn't there yet.

        A crash can have left it out, or somebody has moved the alias in MLflow. The latter is an
        override, and is recorded as one.
        """
        champion, known = self.registry.champion(loop), generation_rows(self.lake, loop)
        recorded = [number for number, row in known.items() if row["status"] == "champion"]
        for number in recorded:
            begun = interrupted_rollback(known, number, champion)
            if begun == "finish":
                self._finish_rollback(rollback_of(known[number]), now_us)
                return
            if begun == "forget":
                never = dict.fromkeys(ROLLBACK_COLUMNS)
                record_generation(self.lake, {"loop": loop, "generation": number} | never)
        if recorded == [champion]:
            return
        if champion == 0 and not recorded:
            explored = self.generation(loop, 0).exploration.describe()
            cold = {"generation": 0, "status": "champion", "exploration": explored}
            record_generation(self.lake, {"loop": loop} | cold)
            return
        row = known.get(champion, {})
        passed = row.get("status") == "challenger" and row.get("verdict") is not None
        explained = passed or row.get("override_reason") is not None
        reason = None if explained else "made champion in the registry, not by Croupier"
        told = reason or row.get("override_reason")
        kind: EventKind = "promoted" if told is None else "overridden"
        by = row.get("override_by") or ""
        self.note(loop, champion, kind, told or PASSED, now_us, by="" if told is None else by)
        record_promotion(self.lake, loop, champion, now_us=now_us, override_reason=reason)

    def require_challenger(self, loop: str, number: int) -> None:
        """Refuse what can't be promoted before anything is recorded of it."""
        if number == self.registry.champion(loop):
            raise InvalidInputError("generation", f"{number} is the champion of {loop} already")
        if number not in self.registry.numbers(loop):
            raise GenerationError(f"the registry has no generation {number} of loop {loop!r}")

    def note(
        self, loop: str, number: int, kind: EventKind, told: str, now_us: int, *, by: str = ""
    ) -> None:
        """Add to a generation's report what has happened to it."""
        event = ReportEvent(ts=now_us, kind=kind, told=told, by=by)
        note_event(self.registry, self.row(loop, number), event)

    def row(self, loop: str, number: int) -> Mapping[str, Any]:
        """A generation's row in the table; its name alone where it has none."""
        rows = generation_rows(self.lake, loop)
        return rows.get(number, {"loop": loop, "generation": number})

    def _finish_rollback(self, done: Rollback, now_us: int) -> None:
        """Put into the table and the reports what the registry has gone back to."""
        loop, left, restored = done.loop, done.left, done.restored
        if restored == 0:
            explored = self.generation(loop, 0).exploration.describe()
            record_generation(self.lake, {"loop": loop, "generation": 0, "exploration": explored})
        told = f"to generation {restored}: {done.reason}"
        self.note(loop, left, "rolled back", told, now_us, by=done.by)
        told = f"after generation {left}: {done.reason}"
        self.note(loop, restored, "restored", told, now_us, by=done.by)
        record_rollback(self.lake, loop, left=left, restored=restored, now_us=now_us)
