"""Telling the service that a person has seen an alert."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import msgspec

from croupier.dashboards.judgements import send

if TYPE_CHECKING:
    from croupier.dashboards.settings import DashboardSettings

__all__ = ("acknowledge",)


class _Acknowledgement(msgspec.Struct, frozen=True):
    alert_id: str
    by: str
    acknowledgement_id: str


def acknowledge(settings: DashboardSettings, loop: str, alert_id: str, by: str) -> None:
    """Have the service log that somebody has seen an alert; to say so again counts once.

    Parameters
    ----------
    settings
        Where the service is.
    loop, alert_id
        Which alert.
    by
        Who.

    Raises
    ------
    NotRecordedError
        If it can't be reached, or says no; in words for the person.
    """
    said = str(uuid.uuid5(uuid.NAMESPACE_OID, repr((loop, alert_id, by))))
    send(settings, loop, "acknowledge", msgspec.json.encode(_Acknowledgement(alert_id, by, said)))
