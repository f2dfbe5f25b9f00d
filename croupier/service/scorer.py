"""The scorer: decisions without any web framework, for the service and for in-process use."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from msgspec import UNSET

from croupier.policy.decision import (
    Circumstances,
    DecisionRequest,
    check_request,
    decide,
    decide_baseline,
)
from croupier.policy.encoding import MAX_PRODUCTS, EncoderConfig, FeatureEncoder
from croupier.policy.errors import InvalidInputError
from croupier.policy.keeping import is_kept
from croupier.policy.ranking import check_rank_request, draw_in_turn, rank, scored_once
from croupier.policy.sensitive import SensitiveFeatures
from croupier.policy.slates import check_slate_request, decide_slate
from croupier.policy.slots import SLOT, check_slots_request, fill_slots, slot_context
from croupier.policy.stepping import begun, decide_step, step_of
from croupier.policy.traffic import Plan, uniform_share
from croupier.service.ids import now_us, uuid7
from croupier.service.json_values import check_json
from croupier.service.session_store import SessionStore
from croupier.service.session_tokens import FIELD, SessionTokens

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from croupier.policy.events import Decision, Features, LearningMode
    from croupier.policy.generation import Generation
    from croupier.policy.loop import LoopConfig
    from croupier.policy.ranking import Ranking, RankRequest
    from croupier.policy.sessions import SessionsConfig, SessionState
    from croupier.policy.slates import SlateRequest
    from croupier.policy.slots import SlotsRequest
    from croupier.policy.stepping import Stepped
    from croupier.service.session_store import SessionEvent

__all__ = ("Scorer", "Step", "now_us", "uuid7")

_log = logging.getLogger(__name__)

_T = TypeVar("_T")


class Step(NamedTuple):
    """A decision, and the token of its session if the request came with one."""

    decision: Decision
    session: str | None


class Scorer:
    """Holds the plan being served of every loop and decides from it.

    Thread-safe: a decision reads its loop's plan once, and :meth:`swap` replaces it in one
    assignment.

    Parameters
    ----------
    loops
        Configuration by loop name.
    clock
        Gives now, in microseconds since the Unix epoch.
    on_fallback
        Called with loop and reason whenever a decision falls back to the baseline.
    secret
        Of the draws and of the tokens of sessions; the same on every scorer of a loop.
    remembered_sessions
        How many sessions are followed here, of callers that don't.
    on_session
        Called with loop and event, see :class:`~croupier.service.session_store.SessionStore`.
    """

    def __init__(
        self,
        loops: Mapping[str, LoopConfig],
        *,
        clock: Callable[[], int] | None = None,
        on_fallback: Callable[[str, str], None] | None = None,
        secret: bytes = b"",
        remembered_sessions: int = 10_000,
        on_session: Callable[[str, SessionEvent], None] | None = None,
    ) -> None:
        self.loops = dict(loops)
        self._clock = clock or now_us
        self._on_fallback = on_fallback
        self._secret = secret
        self._plans: dict[str, Plan] = {}
        self._tokens = SessionTokens(secret)
        self._store = SessionStore(remembered_sessions, on_session)
        self._failed: set[tuple[str, int]] = set()
        self._encoder = FeatureEncoder(EncoderConfig())
        guards = {name: SensitiveFeatures.of(each.fairness) for name, each in self.loops.items()}
        self._guards = {name: each for name, each in guards.items() if each is not None}

    @property
    def sessions(self) -> int:
        """How many sessions are being followed here."""
        return len(self._store)

    def now(self) -> int:
        """Now, in microseconds since the Unix epoch, by the scorer's clock."""
        return self._clock()

    def plan(self, loop: str) -> Plan | None:
        """What is being served; None while the registry has not been heard of."""
        return self._plans.get(loop)

    def swap(self, plan: Plan) -> None:
        """Serve another plan from the next decision on.

        Raises
        ------
        InvalidInputError
            If its loop is not configured here.
        """
        self.loop(plan.champion.loop)
        self._plans[plan.champion.loop] = plan

    def loop(self, name: str) -> LoopConfig:
        """Configuration of a loop.

        Raises
        ------
        InvalidInputError
            If there is none of that name.
        """
        try:
            return self.loops[name]
        except KeyError:
            known = ", ".join(sorted(self.loops))
            raise InvalidInputError("loop", f"expected one of {known}, got {name!r}") from None

    def decide(self, loop: str, request: DecisionRequest) -> Decision:
        """Decide. Trouble with the generation ends in the baseline, never in an error.

        Raises
        ------
        InvalidInputError
            If the request is not a valid one.
        """
        return self.step(loop, request).decision

    def step(self, loop: str, request: DecisionRequest) -> Step:
        """Decide, and tell the caller how far the session has come if it is the one to keep it.

        Otherwise as :meth:`decide`.
        """
        check_request(request)
        return self._in_session(self._begin(loop, request), request)

    def rank(self, loop: str, request: RankRequest) -> Ranking:
        """Put actions in an order; otherwise as :meth:`decide`."""
        check_rank_request(request)
        turn = self._begin(loop, request)
        if turn.plan is not None:
            turn.plan = scored_once(turn.plan)

        def choose(each: DecisionRequest, *, slot: str | None = None) -> Decision:
            if slot is None:
                return self._in_session(turn, each).decision
            return self._choose(turn, each, slot=slot)

        return rank(request, choose)

    def decide_slots(self, loop: str, request: SlotsRequest) -> list[Decision]:
        """Decide slot by slot, in the request's order; otherwise as :meth:`decide`.

        A slot that can't be scored gets its baseline, whatever the slots before it got.
        """
        check_slots_request(request)
        turn = self._begin(loop, request)
        # What is wrong with a slot's context after this is wrong with the slot.
        self._check_products(request)
        places = {slot.id: place for place, slot in enumerate(request.slots)}

        def choose(each: DecisionRequest, *, slot: str | None = None) -> Decision:
            try:
                return self._choose(turn, each, slot=slot)
            except InvalidInputError as error:
                raise _in_the_slot(error, places[slot or ""]) from error

        return fill_slots(request, choose)

    def decide_slate(self, loop: str, request: SlateRequest) -> list[Decision]:
        """Decide a set of actions, one for every place; otherwise as :meth:`decide`."""
        check_slate_request(request)
        turn = self._begin(loop, request)

        def draw(plan: Plan) -> list[Decision]:
            begun_ = begun(plan, request.context, self._note_failure)
            return decide_slate(request, begun_, turn.circumstances, on_failure=self._note_failure)

        drawn = self._drawn(turn, request, draw)
        if drawn is None:
            return draw_in_turn(request, request.size, partial(self._fall_back, turn))
        return drawn

    def retract(self, decisions: Sequence[Decision]) -> None:
        """Take steps of sessions back that were decided here and not logged, from the last one."""
        for decision in reversed(decisions):
            config = self.loops[decision.loop].sessions
            if decision.session is not UNSET and config is not None:
                user = config.user_of(decision.context)
                self._store.retract(decision.loop, user or "", decision.decision_id)

    def keeps(self, decision: Decision) -> bool:
        """Whether a decision is to be logged; the same for all that a request was answered with."""
        loop, decision_id = decision.loop, decision.decision_id
        return is_kept(loop, decision_id, decision.keep_prob, secret=self._secret)

    def _begin(self, loop: str, request: DecisionRequest | SlotsRequest) -> _Turn:
        config = self.loop(loop)
        if request.audit:
            check_json("audit", request.audit)
        if loop in self._guards:
            self._guards[loop].check(request)
        ts = self._clock()
        circumstances = Circumstances(
            request.decision_id if request.decision_id is not None else uuid7(ts),
            ts,
            config.learning_mode,
            uniform_share(config.uniform_slices, ts) if config.uniform_slices else 0.0,
            self._secret,
            config.keep_prob,
        )
        return _Turn(loop, self._plans.get(loop), circumstances)

    def _in_session(self, turn: _Turn, request: DecisionRequest) -> Step:
        """Decide, as a step of a session if it belongs to one that somebody follows.

        Where the baseline is played, nobody decides from what came before, and no step is taken.
        """
        config, token = self.loops[turn.loop].sessions, request.session
        if config is None:
            if token is not None:
                raise InvalidInputError(FIELD, f"expected none: {turn.loop} has no sessions")
            return Step(self._choose(turn, request), None)
        config.check(request.context)
        user = config.user_of(request.context)
        if user is None and token is not None:
            raise InvalidInputError(f"context.{config.user}", "expected whose session it is")
        state = None if token is None or user is None else self._tokens.read(turn.loop, user, token)
        if user is None or not _is_step(turn, request):
            return Step(self._choose(turn, request), token)
        if token is None:
            return Step(self._kept_step(turn, request, user, config), None)
        if state is not None and not state.goes_on(turn.circumstances.ts, config):
            state = None
        stepped = self._stepped(turn, request, state)
        if stepped is None:
            return Step(self._fall_back(turn, request), token)
        return Step(stepped.decision, self._tokens.issue(turn.loop, user, stepped.state))

    def _kept_step(
        self, turn: _Turn, request: DecisionRequest, user: str, config: SessionsConfig
    ) -> Decision:
        """Take a step of a session that is followed here."""
        store, circumstances = self._store, turn.circumstances
        decision_id = circumstances.decision_id
        with store.lock:
            before = store.before(turn.loop, user, decision_id, circumstances.ts, config)
            stepped = self._stepped(turn, request, before)
            if stepped is not None:
                store.keep(turn.loop, user, (decision_id, before), stepped.state, config)
        return self._fall_back(turn, request) if stepped is None else stepped.decision

    def _stepped(
        self, turn: _Turn, request: DecisionRequest, state: SessionState | None
    ) -> Stepped | None:
        circumstances = turn.circumstances
        session = step_of(circumstances.decision_id, state)

        def draw(plan: Plan) -> Stepped:
            return decide_step(request, plan, circumstances, session, on_failure=self._note_failure)

        return self._drawn(turn, request, draw)

    def _choose(
        self, turn: _Turn, request: DecisionRequest, *, slot: str | None = None
    ) -> Decision:
        circumstances = turn.circumstances

        def draw(plan: Plan) -> Decision:
            failed = self._note_failure
            at = begun(plan, request.context, failed)
            return decide(request, at, circumstances, slot=slot, on_failure=failed)

        drawn = self._drawn(turn, request, draw)
        return self._fall_back(turn, request, slot=slot) if drawn is None else drawn

    def _drawn(
        self, turn: _Turn, request: DecisionRequest, draw: Callable[[Plan], _T]
    ) -> _T | None:
        """What is drawn from the plan; None if nothing can be, and the baseline has to be played.

        Whatever an oracle does, the application gets an answer (invariant 5).
        """
        try:
            if turn.plan is None or not _is_scored(turn.plan, turn.circumstances.learning_mode):
                self._check_features(turn, request)
            if turn.plan is None:
                return None
            try:
                return draw(turn.plan)
            except InvalidInputError:
                raise
            except Exception as error:  # noqa: BLE001
                self._note_failure(turn.plan.champion, error)
                self._check_features(turn, request)
                return None
        except InvalidInputError as error:
            raise _in_the_request(error, request) from error

    def _fall_back(
        self, turn: _Turn, request: DecisionRequest, *, slot: str | None = None
    ) -> Decision:
        reason, number = "no generation", 0
        if turn.plan is not None:
            reason, number = "scoring failed", turn.plan.champion.number
        if self._on_fallback is not None:
            self._on_fallback(turn.loop, reason)
        return decide_baseline(
            request, turn.circumstances, loop=turn.loop, generation=number, slot=slot
        )

    def _check_features(self, turn: _Turn, request: DecisionRequest) -> None:
        """Refuse features that no oracle could read, where none has looked at them.

        An application must not find out on the day of its first promotion, nor the training in
        what was logged until then.
        """
        # The draws of a ranking share a context, the actions are those of all draws.
        if turn.checked is not request.context:
            self._encoder.encode(request.context, request.actions)
            turn.checked = request.context

    def _check_products(self, request: SlotsRequest) -> None:
        """Refuse slots that would together cost more than a decision may: each is scored anew."""
        try:
            encoded = self._encoder.encode(request.context, request.actions)
        except InvalidInputError as error:
            raise _in_the_request(error, request) from error
        features = 0
        for place, slot in enumerate(request.slots):
            try:
                own = self._encoder.encode_context(slot_context({}, slot))
            except InvalidInputError as error:
                raise _in_the_slot(error, place) from error
            # Less the constant, which the context has already.
            features += len(encoded.context.indices) + len(own.indices) - 1
        products = features * len(encoded.own.indices)
        if products > MAX_PRODUCTS:
            raise InvalidInputError(
                "slots",
                f"expected at most {MAX_PRODUCTS:,} products of a context and an action feature "
                f"over all slots, got {products:,}",
            )

    def _note_failure(self, generation: Generation, error: Exception) -> None:
        """Log the first failure of a generation; more would come at the rate of requests."""
        if (generation.loop, generation.number) not in self._failed:
            self._failed.add((generation.loop, generation.number))
            _log.error(
                "loop %s: generation %d can't score, others are played instead",
                generation.loop,
                generation.number,
                exc_info=error,
                extra={"event": "scoring_failed", "loop": generation.loop},
            )


@dataclass(slots=True)
class _Turn:
    """One request's turn, of one draw or of several.

    Attributes
    ----------
    loop, plan
        Of the request; what was being served when it came.
    circumstances
        Of all its draws.
    checked
        The context whose features were looked at last.
    """

    loop: str
    plan: Plan | None
    circumstances: Circumstances
    checked: Features | None = None


def _is_scored(plan: Plan, learning_mode: LearningMode) -> bool:
    """Whether an oracle looks at the features of every request."""
    return (
        plan.killed is None and learning_mode != "logging_only" and plan.champion.oracle is not None
    )


def _is_step(turn: _Turn, request: DecisionRequest) -> bool:
    """Whether somebody decides from what came before, or follows the session."""
    plan = turn.plan
    if (
        plan is None
        or plan.killed is not None
        or not (plan.remembers or request.session is not None)
    ):
        return False
    return turn.circumstances.learning_mode != "logging_only"


def _in_the_request(
    error: InvalidInputError, request: DecisionRequest | SlotsRequest
) -> InvalidInputError:
    """Name an action by its place, as all other errors do; the encoder names it by its id."""
    for position, action in enumerate(request.actions):
        by_id = f"actions[id={action.id}]."
        if error.field.startswith(by_id):
            field = f"actions[{position}].{error.field.removeprefix(by_id)}"
            return InvalidInputError(field, error.expected)
    return error


def _in_the_slot(error: InvalidInputError, place: int) -> InvalidInputError:
    """Name a slot by its place, where an oracle found it in the context."""
    if error.field != "context" and not error.field.startswith("context."):
        return error
    field = error.field.removeprefix("context").removeprefix(f".{SLOT}")
    return InvalidInputError(f"slots[{place}]{field}", error.expected)
