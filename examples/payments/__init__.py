"""Card payments whose truth is known, to study how policies behave over many generations."""

from __future__ import annotations

from examples.payments.environment import PaymentsConfig, PaymentsStudy

__all__ = ("study",)


def study(seed: int, *, days: float = 2.0, panel: int = 1000, **parameters: float) -> PaymentsStudy:
    """The environment of a seed, for ``croupier study --environment examples.payments:study``.

    Parameters
    ----------
    seed
        Of issuers and transactions.
    days
        How long a generation serves.
    panel
        Number of requests that policies are valued on.
    parameters
        Those of :class:`~examples.payments.environment.PaymentsConfig`.
    """
    return PaymentsStudy(PaymentsConfig(**parameters), seed=seed, days=days, panel=panel)  # type: ignore[arg-type]
