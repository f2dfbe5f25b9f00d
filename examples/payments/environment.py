"""Card payments whose truth is known: what an issuer approves, by what is done to the request.

A transaction is presented to its issuer with an intervention: a route, a way to deal with strong
customer authentication, a message format and, for retries, a moment. Which ones are feasible
changes from transaction to transaction. The issuer approves most of them, each in ways of its own
that nobody is told, and changes its ways with time. The answer is known hours to days later, in
batches. `README.md` says where the structure comes from and what the parameters stand for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np

from croupier.offline.study.environment import Traffic
from croupier.policy.events import Action, KeptAction
from croupier.policy.requests import DecisionRequest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    FloatArray = NDArray[np.float64]
    IntArray = NDArray[np.int64]

__all__ = (
    "INTERVENTIONS",
    "Intervention",
    "Payments",
    "PaymentsConfig",
    "PaymentsStudy",
    "Transactions",
)

HOUR_US = 3_600_000_000
DAY_US = 24 * HOUR_US

COUNTRIES = ("NL", "DE", "FR", "GB", "US", "BR", "IN", "AU")
CURRENCIES = ("EUR", "EUR", "EUR", "GBP", "USD", "BRL", "INR", "AUD")
EUROPE = np.array([True, True, True, True, False, False, False, False])
CARDS = ("credit", "debit", "prepaid")
_CARD_SHARES = (0.5, 0.42, 0.08)
_RETRY_SHARES = (0.85, 0.10, 0.05)
_HORIZON_DAYS = 400


class Intervention(NamedTuple):
    """What is done to a request before the issuer sees it."""

    route: str
    authentication: str
    format: str
    moment: str

    @property
    def action(self) -> Action:
        """As it is offered to the policy: its parts are the features."""
        return KeptAction("-".join(self), dict(self._asdict()))


_ROUTES = ("local", "global")
_AUTHENTICATIONS = ("none", "exemption", "3ds")
_FORMATS = ("plain", "enriched")
_MOMENTS = ("now", "later")

INTERVENTIONS: tuple[Intervention, ...] = tuple(
    Intervention(*parts) for parts in product(_ROUTES, _AUTHENTICATIONS, _FORMATS, _MOMENTS)
)
"""All of them; the first is what an application without a policy does."""

_LEVELS = (*_ROUTES, *_AUTHENTICATIONS, *_FORMATS, *_MOMENTS)
_HAS = np.array([[float(level in each) for level in _LEVELS] for each in INTERVENTIONS])
_PARTS = {name: _HAS[:, _LEVELS.index(name)] > 0.0 for name in _LEVELS}


class PaymentsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Parameters; `README.md` says why they are what they are.

    Attributes
    ----------
    approval
        Share that is approved, in (0, 1), if feasible interventions are chosen uniformly.
    issuers
        How many there are; their volumes follow Zipf's law.
    response
        Standard deviation, in logits, of what a part of an intervention changes for one issuer.
    drift_days
        After how many days an issuer's responses have lost ``1 - 1/e`` of their correlation with
        what they were; infinite without drift.
    delay_hours
        Median time until the answer is known.
    batch_hours
        Answers are delivered every so many hours.
    per_day
        Transactions a day.
    """

    approval: float = 0.9
    issuers: int = 40
    response: float = 0.7
    drift_days: float = 60.0
    delay_hours: float = 12.0
    batch_hours: float = 6.0
    per_day: int = 2000

    def __post_init__(self) -> None:
        ranges = {
            "approval": (0.0 < self.approval < 1.0, "in (0, 1)"),
            "issuers": (self.issuers >= 1, "at least 1"),
            "response": (0.0 <= self.response < math.inf, "at least 0"),
            "drift_days": (self.drift_days > 0.0, "positive"),
            "delay_hours": (0.0 <= self.delay_hours < math.inf, "at least 0"),
            "batch_hours": (0.0 < self.batch_hours < math.inf, "positive"),
            "per_day": (self.per_day >= 1, "at least 1"),
        }
        for name, (fine, expected) in ranges.items():
            if not fine:
                raise ValueError(f"{name} must be {expected}, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class Transactions:
    """Some transactions, in the order of time.

    Attributes
    ----------
    ts_us
        When each is made, in microseconds since the epoch, shape (n,).
    known_us
        When its answer is known, shape (n,).
    columns
        Issuer, country, card, retry and hour as numbers, and the logarithm of the amount, (n,)
        each.
    feasible
        Which interventions can be chosen, shape (n, 24), at least one in a row.
    approval
        Probability of approval under every intervention, shape (n, 24).
    """

    ts_us: IntArray
    known_us: IntArray
    columns: dict[str, FloatArray]
    feasible: NDArray[np.bool_]
    approval: FloatArray

    def __len__(self) -> int:
        return len(self.ts_us)

    def requests(self) -> Iterator[DecisionRequest]:
        """What the application asks for each; its actions are the feasible ones alone."""
        whole = {name: column.astype(np.int64) for name, column in self.columns.items()}
        for row in range(len(self)):
            country = int(whole["country"][row])
            context = {
                "issuer": f"i{whole['issuer'][row]}",
                "country": COUNTRIES[country],
                "currency": CURRENCIES[country],
                "card": CARDS[int(whole["card"][row])],
                "retry": f"r{whole['retry'][row]}",
                "hour": f"h{whole['hour'][row] // 6}",
                "amount": f"a{int(np.clip(self.columns['log_amount'][row], 0.0, 7.99))}",
            }
            yield DecisionRequest(
                actions=[_ACTIONS[each] for each in np.flatnonzero(self.feasible[row])],
                context=context,
                audit={"card": context["card"], "country": context["country"]},
            )


class Payments:
    """The environment: how transactions come, and what their issuers do.

    An intervention is approved with the probability
    ``logistic(intercept + issuer + card + retry + amount + sum of the parts' responses)``, where a
    part's response is one that all issuers share, one of the issuer's own, and one that depends on
    the amount (authentication helps with large ones, an exemption hurts) or on the hour (some
    issuers answer badly at night, when later is better).

    Parameters
    ----------
    config
        Parameters.
    seed
        Of everything that issuers are; transactions have seeds of their own.
    """

    def __init__(self, config: PaymentsConfig, *, seed: int) -> None:
        self.config = config
        self.seed = seed
        rng = np.random.default_rng((seed, 0))
        issuers, levels = config.issuers, len(_LEVELS)
        volume = 1.0 / np.arange(1, issuers + 1)
        self._share = volume / volume.sum()
        self._country = rng.integers(len(COUNTRIES), size=issuers)
        self._level = 0.5 * rng.standard_normal(issuers)
        self._shared = 0.3 * rng.standard_normal(levels)
        self._start = config.response * rng.standard_normal((issuers, levels))
        self._by_amount = 0.25 * np.abs(rng.standard_normal(issuers))
        self._nightly = rng.random(issuers) < 0.3

    def transactions(self, start_us: int, days: float, *, seed: int) -> Transactions:
        """Those of some days.

        Parameters
        ----------
        start_us
            When the first can come; the environment begins at 0, and knows 400 days.
        days
            How many.
        seed
            Of the transactions, not of the issuers.
        """
        rng = np.random.default_rng((self.seed, 1, seed))
        count = max(1, round(days * self.config.per_day))
        ts_us = start_us + np.sort(rng.integers(round(days * DAY_US), size=count))
        columns = self._columns(ts_us, rng)
        return self._at(ts_us, columns, rng)

    def panel(self, count: int, *, seed: int) -> dict[str, FloatArray]:
        """Contexts that stay the same, to value policies on: see :meth:`on`."""
        rng = np.random.default_rng((self.seed, 2, seed))
        return self._columns(rng.integers(DAY_US, size=count), rng)

    def on(self, columns: dict[str, FloatArray], at_us: int, *, seed: int) -> Transactions:
        """The transactions of a panel as their issuers see them at a moment."""
        ts_us = np.full(len(columns["issuer"]), at_us, dtype=np.int64)
        return self._at(ts_us, columns, np.random.default_rng((self.seed, 3, seed)))

    def _at(
        self,
        ts_us: IntArray,
        columns: dict[str, FloatArray],
        rng: np.random.Generator,
    ) -> Transactions:
        logits = self._logits(ts_us, columns) + self._intercept
        delay = self.config.delay_hours * np.exp(0.8 * rng.standard_normal(len(ts_us)))
        batch = self.config.batch_hours * HOUR_US
        known = np.ceil((ts_us + delay * HOUR_US) / batch) * batch
        return Transactions(
            ts_us=ts_us,
            known_us=known.astype(np.int64),
            columns=columns,
            feasible=_feasible(columns),
            approval=1.0 / (1.0 + np.exp(-logits)),
        )

    def _columns(self, ts_us: IntArray, rng: np.random.Generator) -> dict[str, FloatArray]:
        n = len(ts_us)
        issuer = rng.choice(self.config.issuers, size=n, p=self._share)
        columns = {
            "issuer": issuer,
            "country": self._country[issuer],
            "card": rng.choice(len(CARDS), size=n, p=_CARD_SHARES),
            "retry": rng.choice(len(_RETRY_SHARES), size=n, p=_RETRY_SHARES),
            "hour": ts_us // HOUR_US % 24,
            "log_amount": 3.5 + 1.2 * rng.standard_normal(n),
            # Cards that are not enrolled can't be authenticated.
            "enrolled": rng.random(n) < 0.85,
        }
        return {name: np.asarray(column, dtype=np.float64) for name, column in columns.items()}

    @cached_property
    def _days(self) -> FloatArray:
        """Every issuer's responses day by day, shape (days, issuers, levels): they revert."""
        kept = math.exp(-1.0 / self.config.drift_days)
        rng = np.random.default_rng((self.seed, 4))
        days = np.empty((_HORIZON_DAYS, *self._start.shape))
        days[0] = self._start
        for day in range(1, _HORIZON_DAYS):
            fresh = self.config.response * rng.standard_normal(self._start.shape)
            days[day] = kept * days[day - 1] + math.sqrt(1.0 - kept * kept) * fresh
        return days

    @cached_property
    def _intercept(self) -> float:
        """What makes the share of approvals what it should be."""
        rng = np.random.default_rng((self.seed, 5))
        ts_us = rng.integers(DAY_US, size=20_000)
        columns = self._columns(ts_us, rng)
        logits, feasible = self._logits(ts_us, columns), _feasible(columns)
        shares = feasible / feasible.sum(axis=1, keepdims=True)
        low, high = -20.0, 20.0
        for _ in range(50):
            middle = (low + high) / 2.0
            approved = (shares / (1.0 + np.exp(-logits - middle))).sum() / len(logits)
            low, high = (middle, high) if approved < self.config.approval else (low, middle)
        return (low + high) / 2.0

    def _logits(self, ts_us: IntArray, columns: dict[str, FloatArray]) -> FloatArray:
        issuer = columns["issuer"].astype(np.int64)
        day = np.clip(ts_us // DAY_US, 0, _HORIZON_DAYS - 1)
        size = (columns["log_amount"] - 3.5) / 1.2
        night = (columns["hour"] < 6.0) & self._nightly[issuer]
        of_context = (
            self._level[issuer]
            - 0.2 * size
            - 0.4 * (columns["card"] == CARDS.index("prepaid"))
            - 0.6 * columns["retry"]
            - 0.8 * night
        )
        of_parts = (self._shared + self._days[day, issuer]) @ _HAS.T
        tilt = self._by_amount[issuer] * size
        of_parts += np.outer(tilt, _PARTS["3ds"] * 1.0 - _PARTS["exemption"])
        of_parts += np.outer(0.8 * night, _PARTS["later"] * 1.0)
        logits: FloatArray = of_context[:, None] + of_parts
        return logits


class PaymentsStudy:
    """Payments as studies want them: a generation serves for some days.

    Parameters
    ----------
    config
        Parameters.
    seed
        Of issuers and transactions.
    days
        How long a generation serves.
    panel
        Number of requests that policies are valued on.
    """

    def __init__(
        self, config: PaymentsConfig, *, seed: int, days: float = 2.0, panel: int = 1000
    ) -> None:
        self._payments = Payments(config, seed=seed)
        self._days = days
        self._panel = self._payments.panel(panel, seed=0)

    def traffic(self, generation: int) -> Traffic:
        """What comes while a generation serves."""
        start = self._start_us(generation)
        return _traffic(self._payments.transactions(start, self._days, seed=generation))

    def panel(self, generation: int) -> Traffic:
        """The same requests, as they are approved in the middle of a generation's time."""
        middle = (self._start_us(generation) + self.end_us(generation)) // 2
        return _traffic(self._payments.on(self._panel, middle, seed=generation))

    def end_us(self, generation: int) -> int:
        """When its time is over."""
        return self._start_us(generation + 1)

    def _start_us(self, generation: int) -> int:
        return round(generation * self._days * DAY_US)


def _traffic(transactions: Transactions) -> Traffic:
    return Traffic(
        requests=list(transactions.requests()),
        segments=[f"i{int(each)}" for each in transactions.columns["issuer"]],
        ts_us=transactions.ts_us,
        known_us=transactions.known_us,
        expected=[
            row[feasible]
            for row, feasible in zip(transactions.approval, transactions.feasible, strict=True)
        ],
    )


_ACTIONS = tuple(each.action for each in INTERVENTIONS)


def _feasible(columns: dict[str, FloatArray]) -> NDArray[np.bool_]:
    """Which interventions can be chosen for each transaction, shape (n, 24)."""
    n = len(columns["issuer"])
    europe = EUROPE[columns["country"].astype(np.int64)]
    barred = np.zeros((n, len(INTERVENTIONS)), dtype=bool)
    # Exemptions are for low values under the European rules, of which the bound is 30 euros.
    exempt = europe & (columns["log_amount"] < math.log(30.0))
    barred |= np.outer(~exempt, _PARTS["exemption"])
    barred |= np.outer(columns["enrolled"] == 0.0, _PARTS["3ds"])
    # Only a retry can wait; a local route isn't there everywhere.
    barred |= np.outer(columns["retry"] == 0.0, _PARTS["later"])
    barred |= np.outer(columns["country"] >= len(COUNTRIES) - 2, _PARTS["local"])
    return ~barred
