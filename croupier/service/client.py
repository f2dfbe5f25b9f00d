"""A small typed client of the HTTP API."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

import msgspec
import urllib3

from croupier.policy.decision import DecisionRequest
from croupier.policy.errors import CroupierError, InvalidInputError
from croupier.policy.events import Action, Features
from croupier.policy.ranking import RankRequest
from croupier.policy.slates import SlateRequest
from croupier.policy.slots import Slot, SlotsRequest
from croupier.service.api import (
    ActivateRequest,
    DecideResponse,
    ErrorResponse,
    OutcomeRequest,
    RankResponse,
    Receipt,
    SlateResponse,
    SlotsResponse,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from types import TracebackType

__all__ = ("Client", "ServiceError")

_Answer = TypeVar("_Answer")
_Item = TypeVar("_Item")


class ServiceError(CroupierError):
    """The service refused a request.

    Attributes
    ----------
    status
        Of HTTP.
    code, target
        As in the error's body; target names the field.
    """

    def __init__(self, status: int, code: str, message: str, target: str | None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.target = target


class Client:
    """Talks to one loop of a service; safe to share between threads.

    Parameters
    ----------
    url
        Of the service, such as ``http://127.0.0.1:8080``.
    loop
        Name of the loop.
    key
        API key, if the service wants one.
    connections
        Kept open at most; as many as threads use the client.
    timeout_s
        For connecting and for every answer.

    Examples
    --------
    >>> with Client("http://127.0.0.1:8080", "banner") as client:  # doctest: +SKIP
    ...     answer = client.decide([{"id": "red"}, {"id": "blue"}], {"hour": 9})
    ...     client.reward(answer.decision_id, 1.0)
    """

    def __init__(
        self,
        url: str,
        loop: str,
        *,
        key: str | None = None,
        connections: int = 8,
        timeout_s: float = 10.0,
    ) -> None:
        self._base = f"/v1/loops/{quote(loop, safe='')}/"
        headers = {"content-type": "application/json"}
        if key is not None:
            headers["authorization"] = f"Bearer {key}"
        # An answer that got lost is not asked for again behind the caller's back: a decision is
        # only repeatable under the caller's own decision_id.
        self._pool = urllib3.connectionpool.connection_from_url(
            url,
            maxsize=connections,
            headers=headers,
            timeout=urllib3.Timeout(total=timeout_s),
            retries=urllib3.Retry(connect=2, read=0, redirect=0, status=0, other=0),
        )
        self._encoder = msgspec.json.Encoder()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._pool.close()

    def decide(
        self,
        actions: Sequence[Action | dict[str, Any]],
        context: Features | None = None,
        *,
        decision_id: str | None = None,
        excluded: Sequence[str] = (),
        baseline: str | None = None,
        deferred: bool = False,
        audit: Features | None = None,
    ) -> DecideResponse:
        """Ask for an action.

        Parameters
        ----------
        actions
            The candidates: :class:`Action` or ``{"id": …, "features": {…}}``.
        context, decision_id, excluded, baseline, deferred, audit
            As in :class:`~croupier.policy.decision.DecisionRequest`.

        Raises
        ------
        ServiceError
            If the service refuses.
        InvalidInputError
            If the actions can't be sent.
        urllib3.exceptions.HTTPError
            If the service can't be reached.
        """
        request = DecisionRequest(
            actions=_converted("actions", actions, Action),
            context=context or {},
            decision_id=decision_id,
            excluded=list(excluded),
            baseline=baseline,
            deferred=deferred,
            audit=audit or {},
        )
        return self._post("decide", request, DecideResponse)

    def rank(
        self,
        actions: Sequence[Action | dict[str, Any]],
        context: Features | None = None,
        *,
        depth: int = 1,
        decision_id: str | None = None,
        excluded: Sequence[str] = (),
        baseline: str | None = None,
        deferred: bool = False,
        audit: Features | None = None,
    ) -> RankResponse:
        """Ask for an order of all actions, the first `depth` of them drawn.

        The parameters are those of :class:`~croupier.policy.ranking.RankRequest`; raises as
        :meth:`decide` does.
        """
        request = RankRequest(
            actions=_converted("actions", actions, Action),
            context=context or {},
            depth=depth,
            decision_id=decision_id,
            excluded=list(excluded),
            baseline=baseline,
            deferred=deferred,
            audit=audit or {},
        )
        return self._post("rank", request, RankResponse)

    def decide_slots(
        self,
        actions: Sequence[Action | dict[str, Any]],
        slots: Sequence[Slot | dict[str, Any]],
        context: Features | None = None,
        *,
        decision_id: str | None = None,
        deferred: bool = False,
        audit: Features | None = None,
    ) -> SlotsResponse:
        """Ask for an action for every slot.

        The parameters are those of :class:`~croupier.policy.slots.SlotsRequest`, a slot being a
        :class:`~croupier.policy.slots.Slot` or ``{"id": …, "features": {…}, …}``; raises as
        :meth:`decide` does.
        """
        request = SlotsRequest(
            actions=_converted("actions", actions, Action),
            slots=_converted("slots", slots, Slot),
            context=context or {},
            decision_id=decision_id,
            deferred=deferred,
            audit=audit or {},
        )
        return self._post("slots", request, SlotsResponse)

    def decide_slate(
        self,
        actions: Sequence[Action | dict[str, Any]],
        size: int,
        context: Features | None = None,
        *,
        decision_id: str | None = None,
        excluded: Sequence[str] = (),
        baseline: str | None = None,
        deferred: bool = False,
        audit: Features | None = None,
    ) -> SlateResponse:
        """Ask for a set of `size` actions.

        The parameters are those of :class:`~croupier.policy.slates.SlateRequest`; raises as
        :meth:`decide` does.
        """
        request = SlateRequest(
            actions=_converted("actions", actions, Action),
            size=size,
            context=context or {},
            decision_id=decision_id,
            excluded=list(excluded),
            baseline=baseline,
            deferred=deferred,
            audit=audit or {},
        )
        return self._post("slate", request, SlateResponse)

    def reward(
        self,
        decision_id: str,
        reward: float,
        *,
        slot: str | None = None,
        outcome_id: str | None = None,
        guardrails: dict[str, float] | None = None,
    ) -> Receipt:
        """Report one outcome, for one of the slots if there are any; raises as :meth:`decide`."""
        return self.rewards(
            [
                OutcomeRequest(
                    decision_id=decision_id,
                    reward=reward,
                    slot=slot,
                    outcome_id=outcome_id,
                    guardrails=guardrails or {},
                )
            ]
        )

    def rewards(self, outcomes: Iterable[OutcomeRequest]) -> Receipt:
        """Report many outcomes at once, all of them or none; raises as :meth:`decide` does."""
        return self._post("reward", list(outcomes), Receipt)

    def activate(self, decision_id: str) -> Receipt:
        """Report that a deferred decision was shown; raises as :meth:`decide` does."""
        return self._post("activate", ActivateRequest(decision_id=decision_id), Receipt)

    def _post(self, route: str, request: Any, kind: type[_Answer]) -> _Answer:
        try:
            body = self._encoder.encode(request)
        except (msgspec.MsgspecError, ValueError, TypeError, RecursionError) as error:
            raise InvalidInputError("request", f"expected JSON values: {error}") from error
        response = self._pool.urlopen("POST", self._base + route, body)
        try:
            if response.status == 200:
                return msgspec.json.decode(response.data, type=kind)
            refusal = msgspec.json.decode(response.data, type=ErrorResponse).error
        except (msgspec.DecodeError, UnicodeDecodeError):
            # A proxy in between answers in its own words.
            raise ServiceError(
                response.status, "Unknown", f"status {response.status}, not in JSON", None
            ) from None
        raise ServiceError(response.status, refusal.code, refusal.message, refusal.target)


def _converted(field: str, items: Sequence[Any], kind: type[_Item]) -> list[_Item]:
    try:
        return msgspec.convert(list(items), list[kind])  # type: ignore[valid-type]
    except msgspec.ValidationError as error:
        raise InvalidInputError(field, str(error)) from error
