"""Sending what a person says to the service, which logs it as it logs all events."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec
import urllib3

from croupier.dashboards.settings import JUDGE_KEY_VARIABLE, judge_key
from croupier.policy.errors import CroupierError

if TYPE_CHECKING:
    from croupier.dashboards.settings import DashboardSettings

__all__ = ("NotRecordedError", "Verdict", "send", "send_verdict")

_TIMEOUT_S = 10.0


class NotRecordedError(CroupierError):
    """What was said may not be in the log; sending it once more can't count it twice."""


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What a person says of a pair.

    Attributes
    ----------
    decision_id, other_decision_id
        The pair.
    auditor
        Who says so.
    distance
        How differently the two may be treated, in [0, 1].
    judgement_id
        The same one counts once.
    """

    decision_id: str
    other_decision_id: str
    auditor: str
    distance: float
    judgement_id: str


def send_verdict(settings: DashboardSettings, loop: str, verdict: Verdict) -> None:
    """Have the service log a judgement.

    Raises
    ------
    NotRecordedError
        If it can't be reached, or says no; in words for the person who judges.
    """
    send(settings, loop, "judge", msgspec.json.encode(verdict))


def send(
    settings: DashboardSettings,
    loop: str,
    route: str,
    body: bytes,
    *,
    scope: Literal["judge", "override"] = "judge",
) -> None:
    """Have the service log what a person says.

    Parameters
    ----------
    settings
        Where it is.
    loop, route
        Of a native route.
    body
        In JSON.
    scope
        That the route wants of a key.

    Raises
    ------
    NotRecordedError
        If it can't be reached, or says no; in words for the person.
    """
    if settings.service is None:
        raise NotRecordedError("this dashboard knows no scorer: start it with --service")
    headers = {"content-type": "application/json"}
    key = judge_key()
    if key is not None:
        headers["x-api-key"] = key
    try:
        answer = urllib3.request(
            "POST",
            f"{settings.service.rstrip('/')}/v1/loops/{loop}/{route}",
            body=body,
            headers=headers,
            timeout=_TIMEOUT_S,
            retries=False,
        )
    except urllib3.exceptions.HTTPError as error:
        raise NotRecordedError(f"the scorer at {settings.service} doesn't answer") from error
    if answer.status in {401, 403}:
        raise NotRecordedError(
            f"the scorer wants a key of scope {scope}: start the dashboard with one in "
            f"{JUDGE_KEY_VARIABLE}"
        )
    if answer.status // 100 != 2:
        raise NotRecordedError(f"the scorer says: {_message(answer.data)} ({answer.status})")


class _Error(msgspec.Struct):
    message: str


class _Refusal(msgspec.Struct):
    error: _Error


def _message(body: bytes) -> str:
    try:
        return msgspec.json.decode(body, type=_Refusal).error.message
    except (msgspec.MsgspecError, ValueError):
        return "no reason"
