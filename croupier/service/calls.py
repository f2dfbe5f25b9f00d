"""What can be asked of a loop, over HTTP or in-process: calls, their answers and their errors.

Everything that the synchronous, the asynchronous and the in-process interface share; they differ in
how a call gets to a scorer. Free of NumPy, as is all that it imports.
"""

from __future__ import annotations

import functools
import inspect
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec

from croupier.policy.errors import CroupierError, InvalidInputError
from croupier.policy.events import Action, Features
from croupier.policy.requests import (
    DecisionRequest,
    RankRequest,
    SlateRequest,
    Slot,
    SlotsRequest,
)
from croupier.service.api import (
    ActivateRequest,
    DecideResponse,
    JudgeRequest,
    OutcomeRequest,
    RankResponse,
    Readiness,
    Receipt,
    SlateResponse,
    SlotsResponse,
)
from croupier.service.ids import now_us, uuid7

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

__all__ = (
    "NOT_DECIDED",
    "AccessError",
    "Call",
    "ServiceError",
    "UnavailableError",
    "activate",
    "decide",
    "described",
    "encoded",
    "judge",
    "named",
    "rank",
    "readiness",
    "receipt_of_nothing",
    "reward",
    "rewards",
    "service_error",
    "slate",
    "slots",
)

_T = TypeVar("_T")
_Item = TypeVar("_Item")
_Method = TypeVar("_Method", bound="Callable[..., Any]")

NOT_DECIDED = "not-decided:"
"""Begins the id of a stand-in for an answer, which no decision has."""

_ACCESS = frozenset({401, 403})
_encoder = msgspec.json.Encoder()


class ServiceError(CroupierError):
    """The service refused a request.

    Attributes
    ----------
    status
        Of HTTP; None if there was no answer at all.
    code, message, target
        As in the error's body; target names the field.
    retry_after
        Seconds after which the service wants to be asked again; None if it didn't say.
    """

    def __init__(
        self,
        status: int | None,
        code: str,
        message: str,
        target: str | None = None,
        *,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.target = target
        self.retry_after = retry_after


class AccessError(ServiceError):
    """The key is not known (401), or not for this loop (403)."""


class UnavailableError(ServiceError):
    """The service can't be reached in time, or can't answer now (429, or a status from 500 on).

    Nothing is known of the request: it may have been recorded all the same. To send it again under
    the same `decision_id` or `outcome_id` does no harm.
    """


def service_error(
    status: int,
    code: str,
    message: str,
    target: str | None = None,
    *,
    retry_after: float | None = None,
) -> ServiceError:
    """The exception for an answer of that status."""
    kind = ServiceError
    if status in _ACCESS:
        kind = AccessError
    elif status == 429 or status >= 500:
        kind = UnavailableError
    return kind(status, code, message, target, retry_after=retry_after)


@dataclass(frozen=True, slots=True)
class Call(Generic[_T]):
    """One thing that is asked.

    Attributes
    ----------
    route
        Below the loop's path; ``readyz``, which is no loop's, has no request.
    request
        A struct or a list of structs, which is the body.
    answer
        What is answered.
    """

    route: str
    request: Any
    answer: type[_T]


def decide(
    actions: Sequence[Action | Mapping[str, Any]],
    context: Features | None = None,
    *,
    decision_id: str | None = None,
    excluded: Sequence[str] = (),
    baseline: str | None = None,
    deferred: bool = False,
    audit: Features | None = None,
    session: str | None = None,
) -> Call[DecideResponse]:
    """Ask for an action.

    Parameters
    ----------
    actions
        The candidates: :class:`~croupier.policy.events.Action` or
        ``{"id": …, "features": {…}}``.
    context, decision_id, excluded, baseline, deferred, audit, session
        As in :class:`~croupier.policy.requests.DecisionRequest`.

    Raises
    ------
    InvalidInputError
        If the request can't be written in JSON.
    ServiceError
        If it is refused: an :class:`AccessError` if that is because of the key, an
        :class:`UnavailableError` if the service can't be reached or can't answer.
    """
    request = DecisionRequest(
        actions=_converted("actions", actions, Action),
        context=context or {},
        decision_id=decision_id,
        excluded=list(excluded),
        baseline=baseline,
        deferred=deferred,
        audit=audit or {},
        session=session,
    )
    return Call("decide", request, DecideResponse)


def rank(
    actions: Sequence[Action | Mapping[str, Any]],
    context: Features | None = None,
    *,
    depth: int = 1,
    decision_id: str | None = None,
    excluded: Sequence[str] = (),
    baseline: str | None = None,
    deferred: bool = False,
    audit: Features | None = None,
) -> Call[RankResponse]:
    """Ask for an order of all actions, the first `depth` of them drawn.

    The parameters are those of :class:`~croupier.policy.requests.RankRequest`; raises as
    :meth:`decide` does.
    """
    asked = decide(
        actions,
        context,
        decision_id=decision_id,
        excluded=excluded,
        baseline=baseline,
        deferred=deferred,
        audit=audit,
    )
    return Call("rank", RankRequest(**_fields(asked.request), depth=depth), RankResponse)


def slate(
    actions: Sequence[Action | Mapping[str, Any]],
    size: int,
    context: Features | None = None,
    *,
    decision_id: str | None = None,
    excluded: Sequence[str] = (),
    baseline: str | None = None,
    deferred: bool = False,
    audit: Features | None = None,
) -> Call[SlateResponse]:
    """Ask for a set of `size` actions.

    The parameters are those of :class:`~croupier.policy.requests.SlateRequest`; raises as
    :meth:`decide` does.
    """
    asked = decide(
        actions,
        context,
        decision_id=decision_id,
        excluded=excluded,
        baseline=baseline,
        deferred=deferred,
        audit=audit,
    )
    return Call("slate", SlateRequest(**_fields(asked.request), size=size), SlateResponse)


def slots(
    actions: Sequence[Action | Mapping[str, Any]],
    slots: Sequence[Slot | Mapping[str, Any]],
    context: Features | None = None,
    *,
    decision_id: str | None = None,
    deferred: bool = False,
    audit: Features | None = None,
) -> Call[SlotsResponse]:
    """Ask for an action for every slot.

    The parameters are those of :class:`~croupier.policy.requests.SlotsRequest`, a slot being a
    :class:`~croupier.policy.requests.Slot` or ``{"id": …, "features": {…}, …}``; raises as
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
    return Call("slots", request, SlotsResponse)


def reward(
    decision_id: str,
    reward: float,
    *,
    slot: str | None = None,
    outcome_id: str | None = None,
    guardrails: Mapping[str, float] | None = None,
) -> Call[Receipt]:
    """Report one outcome, for one of the slots if there are any; raises as :meth:`decide` does.

    Parameters
    ----------
    decision_id, reward, slot, outcome_id, guardrails
        As in :class:`~croupier.service.api.OutcomeRequest`. Without an `outcome_id` it gets one of
        its own, under which it counts once however often it has to be sent.
    """
    return rewards(
        [
            OutcomeRequest(
                decision_id=decision_id,
                reward=reward,
                slot=slot,
                outcome_id=outcome_id,
                guardrails=dict(guardrails or {}),
            )
        ]
    )


def rewards(outcomes: Iterable[OutcomeRequest]) -> Call[Receipt]:
    """Report many outcomes at once, all of them or none; raises as :meth:`decide` does.

    Those of answers that were not decided are left out.
    """
    counted = [each for each in outcomes if not each.decision_id.startswith(NOT_DECIDED)]
    return Call("reward", counted, Receipt)


def activate(decision_id: str) -> Call[Receipt]:
    """Report that a deferred decision was shown; raises as :meth:`decide` does."""
    return Call("activate", ActivateRequest(decision_id=decision_id), Receipt)


def judge(
    decision_id: str,
    other_decision_id: str,
    *,
    auditor: str,
    distance: float,
    judgement_id: str | None = None,
) -> Call[Receipt]:
    """Report how differently two decisions may be treated; raises as :meth:`decide` does.

    Parameters
    ----------
    decision_id, other_decision_id, auditor, distance, judgement_id
        As in :class:`~croupier.service.api.JudgeRequest`. Without a `judgement_id` it gets one of
        its own, under which it counts once however often it has to be sent.
    """
    request = JudgeRequest(
        decision_id=decision_id,
        other_decision_id=other_decision_id,
        auditor=auditor,
        distance=distance,
        judgement_id=judgement_id,
    )
    return Call("judge", request, Receipt)


def readiness() -> Call[Readiness]:
    """Ask whether decisions can be made and logged; raises if there is nobody to ask."""
    return Call("readyz", None, Readiness)


def described(method: _Method, function: Callable[..., Call[Any]]) -> _Method:
    """The method, with name, documentation and signature of the function that makes its calls."""
    functools.update_wrapper(method, function)
    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    signature = inspect.signature(function)
    parameters = [own, *signature.parameters.values()]
    # Type checkers see the method's own, with the answer for the call.
    shown = signature.replace(parameters=parameters, return_annotation=inspect.Signature.empty)
    method.__signature__ = shown  # type: ignore[attr-defined]
    return method


def named(call: Call[_T]) -> Call[_T]:
    """The same call with ids for what has none, so that it counts once if it is sent twice."""
    request = call.request
    if isinstance(request, list):
        now = now_us()
        request = [
            each
            if each.outcome_id is not None
            else msgspec.structs.replace(each, outcome_id=uuid7(now))
            for each in request
        ]
    elif isinstance(request, JudgeRequest):
        if request.judgement_id is not None:
            return call
        request = msgspec.structs.replace(request, judgement_id=uuid7(now_us()))
    elif request is not None and request.decision_id is None:
        request = msgspec.structs.replace(request, decision_id=uuid7(now_us()))
    else:
        return call
    return Call(call.route, request, call.answer)


def receipt_of_nothing(call: Call[_T]) -> _T | None:
    """The receipt for a report of nothing, or on what was not decided; None for all other calls."""
    request = call.request
    nothing = (
        request.decision_id.startswith(NOT_DECIDED)
        if isinstance(request, ActivateRequest)
        else request == []
    )
    receipt: Any = Receipt(accepted=0)
    return receipt if nothing else None


def encoded(request: Any) -> bytes:
    """Write a request in JSON.

    Raises
    ------
    InvalidInputError
        If JSON has no such values.
    """
    try:
        body = _encoder.encode(request)
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError) as error:
        raise InvalidInputError("request", f"expected JSON values: {error}") from error
    # What is not finite becomes a null, and defaults are left out, so that nulls are rare.
    if b"null" in body:
        _check_finite("", msgspec.to_builtins(request))
    return body


def _check_finite(where: str, value: Any) -> None:
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidInputError(where, f"expected a finite number, got {value}")
    elif isinstance(value, dict):
        for name, below in value.items():
            _check_finite(f"{where}.{name}" if where else name, below)
    elif isinstance(value, list | tuple):
        for position, below in enumerate(value):
            _check_finite(f"{where}[{position}]", below)


def _converted(field: str, items: Sequence[Any], kind: type[_Item]) -> list[_Item]:
    try:
        return msgspec.convert(list(items), list[kind])  # type: ignore[valid-type]
    except msgspec.ValidationError as error:
        raise InvalidInputError(field, str(error)) from error


def _fields(request: msgspec.Struct) -> dict[str, Any]:
    return {name: getattr(request, name) for name in request.__struct_fields__}
