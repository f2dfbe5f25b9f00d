"""The scorer within an application's own process, for those that want no network."""

from __future__ import annotations

import threading
from collections import OrderedDict
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import msgspec

from croupier.eventlog.log import Record
from croupier.policy.errors import InvalidInputError, LogUnavailableError
from croupier.service import calls
from croupier.service.answers import ANSWERS, activation_of, judgement_from
from croupier.service.api import (
    ActivateRequest,
    DecideRequest,
    DecideSlateRequest,
    DecideSlotsRequest,
    JudgeRequest,
    OutcomeRequest,
    RankActionsRequest,
    Receipt,
)
from croupier.service.calls import Call, UnavailableError
from croupier.service.fallback import baseline_answer
from croupier.service.outcomes import outcomes_of
from croupier.service.refusals import decode, refusal_for
from croupier.service.repeats import fingerprint
from croupier.service.setup import running_parts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType
    from typing import Self

    from croupier.policy.events import Event
    from croupier.service.api import Readiness
    from croupier.service.setup import ServiceParts, ServiceSetup

__all__ = ("EmbeddedLoop", "EmbeddedScorer")

_P = ParamSpec("_P")
_T = TypeVar("_T")

_DECODERS: dict[str, msgspec.json.Decoder[Any]] = {
    "decide": msgspec.json.Decoder(DecideRequest),
    "rank": msgspec.json.Decoder(RankActionsRequest),
    "slots": msgspec.json.Decoder(DecideSlotsRequest),
    "slate": msgspec.json.Decoder(DecideSlateRequest),
    "reward": msgspec.json.Decoder(list[OutcomeRequest]),
    "activate": msgspec.json.Decoder(ActivateRequest),
    "judge": msgspec.json.Decoder(JudgeRequest),
}


class EmbeddedScorer:
    """Decides in this process, and does all else that the HTTP service does.

    It follows the registry, logs with the configured durability before it answers, and gives a
    repeated request the answer it got before. Several processes, and ``croupier serve``, may work
    over one data directory. Safe to share between threads, not between processes: one that forks
    opens its scorer after that.

    Made by :meth:`open`.

    Examples
    --------
    >>> with EmbeddedScorer.open(load_setup("croupier.toml")) as scorer:  # doctest: +SKIP
    ...     banner = scorer.loop("banner")
    ...     answer = banner.decide([{"id": "red"}, {"id": "blue"}], {"hour": 9})
    ...     banner.reward(answer.decision_id, 1.0)
    """

    def __init__(self, parts: ServiceParts, closing: ExitStack, remembered: int) -> None:
        self._parts = parts
        self._closing = closing
        self._repeats = _Repeats(remembered)

    @classmethod
    def open(cls, setup: ServiceSetup, *, mirror: bool = True) -> Self:
        """Start to follow the registry, and open the log.

        Parameters
        ----------
        setup
            As :func:`croupier.cli.config.load_setup` reads it; the service's address, keys and
            limit of bodies play no part.
        mirror
            Keep the mirrored generations up to date from a process of its own. One a machine is
            enough: leave it to ``croupier serve``, or to one of several processes, if there is one.

        Raises
        ------
        LogUnavailableError
            If the log can't be opened.
        ConfigError
            If the secret of the draws can't be kept.
        """
        with ExitStack() as stack:
            parts = stack.enter_context(running_parts(setup, mirror=mirror))
            return cls(parts, stack.pop_all(), setup.service.remembered_decisions)

    def loop(self, name: str, *, fallback: bool = False) -> EmbeddedLoop:
        """The interface to one loop, with the methods of :class:`~croupier.service.client.Client`.

        Parameters
        ----------
        name
            Of the loop.
        fallback
            Answer with the baseline, with `decided` False, where the log can't take a decision,
            instead of raising an :class:`~croupier.service.calls.UnavailableError`.

        Raises
        ------
        InvalidInputError
            If it is not configured.
        """
        self._parts.scorer.loop(name)
        return EmbeddedLoop(self._parts, self._repeats, name, fallback=fallback)

    def readiness(self) -> Readiness:
        """Whether decisions can be made and logged, as ``/readyz`` says it."""
        return self._parts.readiness()

    def close(self) -> None:
        """Write out what waits for the log, and stop. Closing twice is harmless.

        Raises
        ------
        LogUnavailableError
            If records were left unwritten, of which none was acknowledged unless the log is
            buffered.
        """
        self._closing.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _in_process(
    function: Callable[_P, Call[_T]],
) -> Callable[Concatenate[EmbeddedLoop, _P], _T]:
    """A method that makes a call and answers it."""

    def method(loop: EmbeddedLoop, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return loop._answered(function(*args, **kwargs))  # noqa: SLF001 - a method of its own

    return calls.described(method, function)


class EmbeddedLoop:
    """One loop of an :class:`EmbeddedScorer`; made by its :meth:`~EmbeddedScorer.loop`.

    It answers, and refuses, as the HTTP service does, with the same exceptions as
    :class:`~croupier.service.client.Client`. What is asked goes through JSON here too, so that what
    is decided from is what is logged, and the caller's objects stay the caller's.
    """

    def __init__(
        self, parts: ServiceParts, repeats: _Repeats, name: str, *, fallback: bool
    ) -> None:
        self._parts = parts
        self._repeats = repeats
        self._name = name
        self._fallback = fallback
        self._reports: dict[str, Callable[[Any], Receipt]] = {
            "reward": self._rewarded,
            "activate": self._activated,
            "judge": self._judged,
        }

    decide = _in_process(calls.decide)
    rank = _in_process(calls.rank)
    slots = _in_process(calls.slots)
    slate = _in_process(calls.slate)
    reward = _in_process(calls.reward)
    rewards = _in_process(calls.rewards)
    activate = _in_process(calls.activate)
    judge = _in_process(calls.judge)

    def readiness(self) -> Readiness:
        """Whether decisions can be made and logged, as ``/readyz`` says it."""
        return self._parts.readiness()

    def _answered(self, call: Call[_T]) -> _T:
        nothing = calls.receipt_of_nothing(call)
        if nothing is not None:
            return nothing
        body = calls.encoded(call.request)
        try:
            request = decode(_DECODERS[call.route], body)
            if call.route in ANSWERS and len(body) > self._parts.features.harmless_bytes:
                self._parts.features.check(request)
            answer: _T = self._answer(call.route, request)
        except Exception as error:
            refusal = refusal_for(error, call.route)
            retry_after = dict(refusal.headers).get(b"retry-after")
            raised = calls.service_error(
                refusal.status,
                refusal.code,
                refusal.message,
                refusal.target,
                retry_after=None if retry_after is None else float(retry_after),
            )
            if self._fallback and isinstance(raised, UnavailableError):
                stand_in = baseline_answer(self._name, call)
                if stand_in is not None:
                    return stand_in
            raise raised from error
        return answer

    def _answer(self, route: str, request: Any) -> Any:
        report = self._reports.get(route)
        if report is not None:
            return report(request)
        return self._repeats.once(
            self._name, request.decision_id, request, lambda: self._decided(route, request)
        )

    def _decided(self, route: str, request: Any) -> Any:
        found = ANSWERS[route](self._parts.scorer, self._name, request)
        # Unless a subsampled log doesn't keep them.
        if self._parts.scorer.keeps(found.decisions[0]):
            try:
                self._log(found.decisions)
            except BaseException:
                self._parts.scorer.retract(found.decisions)
                raise
        return found.response

    def _rewarded(self, requests: list[OutcomeRequest]) -> Receipt:
        self._log(outcomes_of(self._parts.scorer, self._name, requests, listed=True))
        return Receipt(accepted=len(requests))

    def _activated(self, request: ActivateRequest) -> Receipt:
        self._log([activation_of(self._parts.scorer, self._name, request.decision_id)])
        return Receipt(accepted=1)

    def _judged(self, request: JudgeRequest) -> Receipt:
        self._log([judgement_from(self._parts.scorer, self._name, request)])
        return Receipt(accepted=1)

    def _log(self, events: Sequence[Event]) -> None:
        """Log what belongs together, all or none, and wait as long as the durability says."""
        self._parts.appender.submit_many([Record.of(event) for event in events]).result()


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request by its fingerprint, and the answer that it got or is to get."""

    fingerprint: bytes
    answer: Future[Any] = field(default_factory=Future)


class _Repeats:
    """What :class:`~croupier.service.repeats.Repeats` is to an event loop, for threads."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._lock = threading.Lock()
        self._asked: OrderedDict[tuple[str, str], _Asked] = OrderedDict()

    def once(
        self, loop: str, decision_id: str | None, request: Any, answer: Callable[[], Any]
    ) -> Any:
        if decision_id is None or self._capacity == 0:
            return answer()
        key, new = (loop, decision_id), _Asked(fingerprint(request))
        with self._lock:
            asked = self._asked.setdefault(key, new)
        if asked is not new:
            if asked.fingerprint != new.fingerprint:
                raise InvalidInputError(
                    "decision_id", f"expected one of its own for every request, got {decision_id!r}"
                )
            return asked.answer.result()
        try:
            made = answer()
        except BaseException as error:
            with self._lock:
                if self._asked.get(key) is new:
                    del self._asked[key]
            # An interrupt is for the thread that it came to, not for those that wait.
            new.answer.set_exception(
                error
                if isinstance(error, Exception)
                else LogUnavailableError("whoever asked first was interrupted, ask again")
            )
            raise
        new.answer.set_result(made)
        with self._lock:
            while len(self._asked) > self._capacity:
                self._asked.popitem(last=False)
        return made
