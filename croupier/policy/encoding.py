"""Feature encoding: from JSON features to hashed indices and values, written once.

The scorer, training, evaluation and the simulators all encode through :class:`FeatureEncoder`.
Features live in two groups, the context and the action; a linear oracle sees both and their
product. Indices and products follow Vowpal Wabbit's conventions (murmur3 hashes seeded with the
group's hash; the product of features i and j is ``(16777619 · i) xor j``), so that a weight vector
that Vowpal Wabbit learned can be read by NumPy, index for index.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar

import mmh3
import msgspec
import numpy as np
from numpy.typing import NDArray

from croupier.policy.errors import InvalidInputError
from croupier.policy.events import KeptAction
from croupier.policy.kernel import KERNEL

if TYPE_CHECKING:
    from collections.abc import Sequence

    from croupier.policy.events import Action, Features
    from croupier.policy.kernel import Chosen

__all__ = (
    "INTERACTION_PRIME",
    "PARTS",
    "DecisionColumns",
    "EncodedDecision",
    "EncodedFeatures",
    "EncoderConfig",
    "FeatureEncoder",
    "Lines",
)

INTERACTION_PRIME = 16777619
PARTS = 4
"""Parts that a linear model consists of: constants (the constant, the action's id and their
product), the context's features (by themselves and with the id), the action's (likewise with the
constant), and products of the two."""
MAX_DEPTH = 8
MAX_PRODUCTS = 10_000_000
_LINES_AT_ONCE = 4096

_K = TypeVar("_K")
_V = TypeVar("_V")
_Member: TypeAlias = tuple[str, str, int, dict[str, int]]
"""An object's member: its key, its path, the path's hash, and the hashes of its categories."""

IndexArray: TypeAlias = NDArray[np.uint64]
ValueArray: TypeAlias = NDArray[np.float32] | NDArray[np.float64]

_PRIME = np.uint64(INTERACTION_PRIME)
_CONTEXT_SEED = mmh3.hash("context", 0, signed=False)
_ACTION_SEED = mmh3.hash("action", 0, signed=False)
# Seeds of their own: no feature that an application can name shares a hash with these by its name.
_CONSTANT = mmh3.hash("", mmh3.hash("constant", 0, signed=False), signed=False)
_ACTION_ID_SEED = mmh3.hash("action id", 0, signed=False)
_CACHED_HASHES = 100_000
_CACHED_NAME_LENGTH = 200
_CACHED_POSITIONS = 500_000
_GATHERED = 500_000
_LARGEST = float(np.finfo(np.float32).max)
_TOO_LARGE = f"expected finite numbers within ±{_LARGEST:.3g}"


class EncoderConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How features become indices.

    Attributes
    ----------
    bits
        The weight table has ``2**bits`` entries; 10 to 26.
    action_id
        Whether the action's id is itself a feature.
    """

    bits: int = 18
    action_id: bool = True

    def __post_init__(self) -> None:
        if not 10 <= self.bits <= 26:
            raise ValueError(f"bits must be in [10, 26], got {self.bits}")


class EncodedFeatures(NamedTuple):
    """Features of one group: hashed indices (not yet masked) and values, both of shape (m,).

    Values are float32; those of :meth:`FeatureEncoder.columns` are float64, in which the product of
    two float32 numbers is exact.
    """

    indices: IndexArray
    values: ValueArray


class EncodedDecision:
    """The features of a decision: those of the context, and those of each of the K actions.

    Parameters
    ----------
    context
        Shared features.
    actions
        The features of every action by itself.
    """

    __slots__ = ("_own", "actions", "context")

    def __init__(self, context: EncodedFeatures, actions: list[EncodedFeatures]) -> None:
        self.context = context
        self.actions = actions
        self._own: EncodedFeatures | None = None

    @property
    def own(self) -> EncodedFeatures:
        """The actions' features, one action's after the other's."""
        if self._own is None:
            self._own = EncodedFeatures(
                np.concatenate([features.indices for features in self.actions]),
                np.concatenate([features.values for features in self.actions]),
            )
        return self._own

    @property
    def sizes(self) -> list[int]:
        """How many features of its own each action has, K numbers."""
        return [features.indices.size for features in self.actions]

    @property
    def owners(self) -> NDArray[np.int64]:
        """Position of the action that each of the actions' features belongs to."""
        return np.repeat(np.arange(len(self.actions)), self.sizes)


@dataclass(frozen=True, slots=True)
class DecisionColumns:
    """All columns of all actions of a decision, as the entries of a sparse (K, 2**bits) matrix.

    Attributes
    ----------
    actions
        Position of the action, shape (n,).
    indices
        Column, masked to the weight table, shape (n,). One that occurs more than once with an
        action has its values add up.
    values
        Shape (n,), float64.
    parts
        Which of the :data:`PARTS` the column belongs to, counted from 0, shape (n,); None unless
        asked for.
    """

    actions: NDArray[np.int64]
    indices: IndexArray
    values: NDArray[np.float64]
    parts: NDArray[np.uint8] | None = None


class Lines(NamedTuple):
    """Columns of n pairs of a context and an action, one pair after the other.

    Attributes
    ----------
    ends
        The columns of pair i are those from ``ends[i]`` to ``ends[i + 1]``, shape (n + 1,).
    indices, values
        Columns, masked to the weight table, and what stands there; shape (number of columns,).
    """

    ends: NDArray[np.int64]
    indices: NDArray[np.int64]
    values: NDArray[np.float64]


class FeatureEncoder:
    """Encodes contexts and actions.

    Numbers and booleans become one feature with that value, strings one feature named
    ``path=value`` with value 1, nulls nothing; objects and lists are walked, a list of numbers by
    position (``pixels[3]``), strings in a list as a set (``tags=new``). The order of an object's
    keys makes no difference, not even in the last bit of a score: clients that retry a request
    often serialize it anew.

    Paths are joined by dots and say nothing about what they went through, as in Vowpal Wabbit's
    JSON: ``{"a.b": 1}`` and ``{"a": {"b": 1}}`` are the same feature, and so are ``{"x=y": 1}`` and
    ``{"x": "y"}``. That is harmless: only the names an application chooses can meet, never the
    values its users type, and one that writes both spellings means the same thing or has two
    features share a weight, as any two may that are hashed. Zero and false are the absence of a
    feature to a linear oracle, as null is. The action's id and the constant are hashed apart from
    features, so that no feature shares their weights by its name.

    Parameters
    ----------
    config
        Size of the weight table and what counts as a feature.
    compiled
        Whether to use the compiled inner loops, where they were built; results are the same, but
        for the last bits of scores.
    """

    def __init__(self, config: EncoderConfig, *, compiled: bool = True) -> None:
        self.config = config
        self._kernel = KERNEL if compiled else None
        self.mask = np.uint64((1 << config.bits) - 1)
        self._hashes: dict[tuple[int, str], int] = {}
        self._words = 0
        self._vectors: dict[tuple[int, str, int], list[int]] = {}
        self._shapes: dict[tuple[int, str, tuple[str, ...]], list[_Member]] = {}
        self._positions = 0
        self._kept = "_with_id" if config.action_id else "_without_id"

    def encode(self, context: Features, actions: Sequence[Action]) -> EncodedDecision:
        """Encode a decision's context and all of its actions.

        Raises
        ------
        InvalidInputError
            If a feature is nested deeper than 8 levels, is of an unknown type, too large for
            float32 or not valid Unicode; or if there are more products of context and action
            features than a decision may cost.
        """
        shared = self.encode_context(context)
        kept = self._kept
        try:
            encoded = [action.__dict__[kept] for action in actions]
        except (AttributeError, KeyError):
            encoded = [self.encode_action(action) for action in actions]
        if self._kernel is not None:
            own = self._kernel.count(encoded)
        else:
            own = sum([len(each.indices) for each in encoded])
        products = len(shared.indices) * own
        if products > MAX_PRODUCTS:
            raise InvalidInputError(
                "context",
                f"expected at most {MAX_PRODUCTS:,} products of a context and an action feature, "
                f"got {products:,}",
            )
        return EncodedDecision(shared, encoded)

    def encode_context(self, context: Features) -> EncodedFeatures:
        """Encode shared features and a constant, which gives each action a weight of its own."""
        if self._kernel is not None:
            found = self._kernel.encode(context, _CONTEXT_SEED, _CONSTANT)
            if found is not None:
                return _features(found)
        group = _Group(_CONTEXT_SEED, [_CONSTANT], [1.0])
        try:
            self._walk_object(group, "", context, depth=0)
            return group.encoded()
        except InvalidInputError as error:
            raise _located("context", error) from error

    def encode_action(self, action: Action) -> EncodedFeatures:
        """Encode one action's features, and its id unless the configuration says otherwise."""
        if type(action) is not KeptAction:
            return self._encode_action(action)
        kept: EncodedFeatures | None = action.__dict__.get(self._kept)
        if kept is None:
            # Not masked yet, so tables of all sizes can have the same one.
            kept = action.__dict__[self._kept] = self._encode_action(action)
        return kept

    def _encode_action(self, action: Action) -> EncodedFeatures:
        try:
            first = self._hash(_ACTION_ID_SEED, action.id) if self.config.action_id else None
            if self._kernel is not None:
                found = self._kernel.encode(action.features, _ACTION_SEED, first)
                if found is not None:
                    return _features(found)
            group = _Group(_ACTION_SEED, [], [])
            if first is not None:
                group.add(first, 1.0)
            self._walk_object(group, "", action.features, depth=0)
            return group.encoded()
        except InvalidInputError as error:
            raise _located(f"actions[id={action.id}].features", error) from error

    def columns(self, decision: EncodedFeatures, action: EncodedFeatures) -> EncodedFeatures:
        """All features a linear oracle sees for one action: context, action and their products.

        Indices are masked to the weight table; an index can occur more than once, and its values
        then add up.
        """
        products = interact(decision.indices, action.indices)
        shared, own = decision.values.astype(np.float64), action.values.astype(np.float64)
        return EncodedFeatures(
            np.concatenate([decision.indices, action.indices, products]) & self.mask,
            np.concatenate([shared, own, np.outer(own, shared).ravel()]),
        )

    def lines(
        self, contexts: Sequence[EncodedFeatures], actions: Sequence[EncodedFeatures]
    ) -> Lines:
        """Those of :meth:`columns` of n pairs of a context and an action, in the same order."""
        shared, own = _Runs.of(contexts), _Runs.of(actions)
        sizes = shared.sizes + own.sizes + shared.sizes * own.sizes
        ends = np.concatenate([[0], np.cumsum(sizes)])
        indices = np.empty(ends[-1], dtype=np.int64)
        values = np.empty(ends[-1])
        # Few shapes, as an application's requests are much alike, and each of them at once.
        shapes, of_shape = np.unique(
            np.column_stack([shared.sizes, own.sizes]), axis=0, return_inverse=True
        )
        for place in range(len(shapes)):
            alike = np.flatnonzero(of_shape == place)
            for start in range(0, len(alike), _LINES_AT_ONCE):
                rows = alike[start : start + _LINES_AT_ONCE]
                context, context_values = shared.block(rows)
                action, action_values = own.block(rows)
                products = (context * _PRIME)[:, None, :] ^ action[:, :, None]
                weighed = action_values[:, :, None] * context_values[:, None, :]
                size = len(rows), -1
                block = np.hstack([context, action, products.reshape(size)]) & self.mask
                at = ends[rows][:, None] + np.arange(block.shape[1])
                indices[at] = block.view(np.int64)
                values[at] = np.hstack([context_values, action_values, weighed.reshape(size)])
        return Lines(ends, indices, values)

    def decision_columns(
        self, decision: EncodedDecision, *, parts: bool = False
    ) -> DecisionColumns:
        """Those of :meth:`columns` that are not 0, of all K actions; with their parts if asked."""
        context, own, owners = decision.context, decision.own, decision.owners
        shared, values = context.values.astype(np.float64), own.values.astype(np.float64)
        count = len(decision.sizes)
        columns = DecisionColumns(
            np.concatenate(
                [
                    np.repeat(np.arange(count), len(shared)),
                    owners,
                    np.repeat(owners, len(shared)),
                ]
            ),
            np.concatenate(
                [
                    np.tile(context.indices, count),
                    own.indices,
                    interact(context.indices, own.indices),
                ]
            )
            & self.mask,
            np.concatenate([np.tile(shared, count), values, np.outer(values, shared).ravel()]),
        )
        there = columns.values != 0.0
        return DecisionColumns(
            columns.actions[there],
            columns.indices[there],
            columns.values[there],
            self._parts(len(shared), decision.sizes)[there] if parts else None,
        )

    def parts(self, shared: int, own: int) -> NDArray[np.uint8]:
        """Parts of the columns of one action, in the order of :meth:`columns`.

        Parameters
        ----------
        shared, own
            How many features the context and the action have, the constant and the id included.
        """
        return self._parts(shared, [own])

    def _parts(self, shared: int, sizes: Sequence[int]) -> NDArray[np.uint8]:
        """Those of :meth:`decision_columns`, but for what is 0."""
        context = np.ones(shared, dtype=np.uint8)
        context[0] = 0
        own = np.full(sum(sizes), 2, dtype=np.uint8)
        if self.config.action_id:
            own[[0, *accumulate(sizes[:-1])]] = 0
        # 0 and 1 with an id, 2 and 3 with a feature of the action's.
        return np.concatenate(
            [np.tile(context, len(sizes)), own, np.add.outer(own, context).ravel()]
        )

    def indices_of(self, decision: EncodedDecision) -> IndexArray:
        """Every column that an action of the decision has, masked; some more than once."""
        context, own = decision.context.indices, decision.own.indices
        return np.asarray(
            np.concatenate([context, own, interact(context, own)]) & self.mask, dtype=np.uint64
        )

    def choose(
        self,
        weights: NDArray[np.float32],
        context: Features,
        actions: Sequence[Action],
        gamma: float,
        number: float,
    ) -> Chosen | None:
        """Draw an action by inverse gap weights of :meth:`linear_scores`; None without the kernel.

        None too if a score is not finite.

        Parameters
        ----------
        weights
            The table, shape (2**bits,).
        context, actions
            The request.
        gamma
            Greediness ≥ 0.
        number
            In [0, 1), at which the pmf's cumulative sums are inverted.

        Raises
        ------
        InvalidInputError
            As :meth:`encode` does.
        """
        if self._kernel is None or weights.dtype != np.float32:
            return None
        decision = self.encode(context, actions)
        return self._kernel.choose(weights, decision.context, decision.actions, gamma, number)

    def linear_scores(
        self, weights: NDArray[np.float32] | NDArray[np.float64], decision: EncodedDecision
    ) -> NDArray[np.float64]:
        """Dot product of a weight table with the columns of every action, shape (K,), in float64.

        Equal to summing ``weights[columns.indices] * columns.values`` per action, without building
        the columns.
        """
        if self._kernel is not None:
            return self._kernel.score(weights, decision.context, decision.actions)
        context, own, mask = decision.context, decision.own, self.mask
        values = context.values.astype(np.float64)
        shared = _weights_at(weights, context.indices & mask).dot(values)
        # Masked before they are crossed, which gives the same and is less to do.
        hashed = context.indices * _PRIME & mask
        owned = own.indices & mask
        learned = _weights_at(weights, owned)
        # All actions at once, but never more than some megabytes of gathered weights.
        step = max(1, _GATHERED // len(hashed))
        for start in range(0, len(owned), step):
            rows = slice(start, start + step)
            crossed = _weights_at(weights, hashed ^ owned[rows, None])
            learned[rows] += crossed.dot(values)
        learned *= own.values
        return np.asarray(shared + _sums(learned, decision.sizes), dtype=np.float64)

    def linear_variances(
        self,
        places: NDArray[np.int32],
        covariance: NDArray[np.float64],
        precisions: NDArray[np.float64],
        decision: EncodedDecision,
    ) -> NDArray[np.float64] | None:
        """Variances of :meth:`linear_scores` under a posterior of the weights, shape (K,).

        For an action with the columns x it is ``x_kᵀ C x_k + Σ x_u² / precision`` with k the
        columns that have a place and u the others. None without the kernel, and where more than
        eleven digits would cancel: there the root of the covariance has to be asked.

        Parameters
        ----------
        places
            Rows of `covariance` by column, shape (2**bits,), -1 for a column that has none.
        covariance
            C, of the m columns that have a place, shape (m, m).
        precisions
            Of the columns without, by part, shape (PARTS,).
        decision
            Encoded context and actions.
        """
        if self._kernel is None:
            return None
        config = self.config
        return self._kernel.variances(
            places, covariance, precisions, config.action_id, decision.context, decision.actions
        )

    def member_scores(
        self, weights: NDArray[np.float32], decision: EncodedDecision
    ) -> NDArray[np.float64]:
        """:meth:`linear_scores` under B weight tables at once, shape (B, K).

        Parameters
        ----------
        weights
            The tables side by side, shape (2**bits, B), so that one look-up finds a column's weight
            in all of them.
        decision
            Encoded context and actions.
        """
        context, mask = decision.context, self.mask
        members, count = weights.shape[1], len(decision.sizes)
        values = context.values.astype(np.float64)
        shared = values @ weights[context.indices & mask].astype(np.float64)
        own = decision.own
        hashed = context.indices * _PRIME
        learned = weights[own.indices & mask].astype(np.float64)
        step = max(1, _GATHERED // (len(hashed) * members))
        for start in range(0, len(own.indices), step):
            rows = slice(start, start + step)
            learned[rows] += values @ weights[(hashed ^ own.indices[rows, None]) & mask].astype(
                np.float64
            )
        learned *= own.values[:, None]
        places = decision.owners[:, None] * members + np.arange(members)
        sums = np.bincount(places.ravel(), weights=learned.ravel(), minlength=count * members)
        return np.asarray((shared + sums.reshape(count, members)).T, dtype=np.float64)

    def _walk_object(self, group: _Group, path: str, value: dict[Any, Any], depth: int) -> None:
        """Walk an object's members; what nearly all of them are is dealt with on the spot."""
        indices, values = group.indices, group.values
        members = self._members(group.seed, path, value)
        if depth >= MAX_DEPTH and members:
            raise InvalidInputError(
                members[0][1], f"expected at most {MAX_DEPTH} levels of nesting"
            )
        for key, name, index, words in members:
            item = value[key]
            kind = type(item)
            if kind is float or kind is int or kind is bool:
                indices.append(index)
                values.append(item)
            elif kind is str:
                indices.append(words.get(item) or self._word(words, group.seed, name, item))
                values.append(1.0)
            else:
                self._walk(group, name, item, depth + 1)

    def _walk(self, group: _Group, path: str, value: Any, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise InvalidInputError(path, f"expected at most {MAX_DEPTH} levels of nesting")
        if isinstance(value, dict):
            self._walk_object(group, path, value, depth)
        elif isinstance(value, list | tuple):
            self._walk_list(group, path, value, depth)
        elif isinstance(value, str):
            group.add(self._hash(group.seed, f"{path}={value}"), 1.0)
        elif isinstance(value, int | float):
            group.add(self._hash(group.seed, path), value)
        elif value is not None:
            raise InvalidInputError(path, f"expected a JSON value, got {type(value).__name__}")

    def _walk_list(self, group: _Group, path: str, items: Sequence[Any], depth: int) -> None:
        if all(type(item) is float or type(item) is int for item in items):
            group.indices.extend(self._vector(group.seed, path, len(items)))
            group.values.extend(items)
            return
        for position, item in enumerate(items):
            name = path if isinstance(item, str) else f"{path}[{position}]"
            self._walk(group, name, item, depth + 1)

    def _hash(self, seed: int, name: str) -> int:
        key = (seed, name)
        index = self._hashes.get(key)
        if index is None:
            index = _murmur(name, seed)
            # Bounded: free-text features must not grow the process without end.
            if len(name) <= _CACHED_NAME_LENGTH:
                if len(self._hashes) >= _CACHED_HASHES:
                    self._hashes.clear()
                self._hashes[key] = index
        return index

    def _word(self, words: dict[str, int], seed: int, name: str, word: str) -> int:
        """Hash of a category, kept with the member of an object whose value it was."""
        index = _murmur(f"{name}={word}", seed)
        if len(word) <= _CACHED_NAME_LENGTH:
            if self._words >= _CACHED_HASHES:
                self._forget_shapes()
            words[word] = index
            self._words += 1
        return index

    def _members(self, seed: int, path: str, value: dict[Any, Any]) -> list[_Member]:
        """What there is to know of every member of an object, in the order of the keys."""
        shape = (seed, path, tuple(value))
        members = self._shapes.get(shape)
        if members is None:
            keys = _sorted_keys(path, value)
            names = [f"{path}.{key}" if path else key for key in keys]
            members = [
                (key, name, _murmur(name, seed), {}) for key, name in zip(keys, names, strict=True)
            ]
            # Bounded likewise; a member takes the room of about 8 positions.
            if all(len(name) <= _CACHED_NAME_LENGTH for name in names):
                self._keep(self._shapes, shape, members, 8 * len(members) + 10)
        return members

    def _vector(self, seed: int, path: str, length: int) -> list[int]:
        key = (seed, path, length)
        vector = self._vectors.get(key)
        if vector is None:
            vector = [_murmur(f"{path}[{position}]", seed) for position in range(length)]
            # Bounded likewise; the key of a vector takes the room of about 10 positions.
            if len(path) <= _CACHED_NAME_LENGTH:
                self._keep(self._vectors, key, vector, length + 10)
        return vector

    def _keep(self, cache: dict[_K, _V], key: _K, value: _V, room: int) -> None:
        """Put something into a cache, unless it takes all the room; empty the caches if full."""
        if room > _CACHED_POSITIONS:
            return
        if self._positions + room > _CACHED_POSITIONS:
            self._forget_shapes()
        cache[key] = value
        self._positions += room

    def _forget_shapes(self) -> None:
        self._vectors.clear()
        self._shapes.clear()
        self._positions = self._words = 0


def _features(found: tuple[IndexArray, ValueArray]) -> EncodedFeatures:
    # Faster than to call the class, which takes the two apart first.
    return tuple.__new__(EncodedFeatures, found)


def interact(context: IndexArray, action: IndexArray) -> IndexArray:
    """Indices of all products, shape (#action * #context,), action by action, not masked."""
    return np.asarray(((context * _PRIME) ^ action[:, None]).ravel(), dtype=np.uint64)


@dataclass(frozen=True, slots=True)
class _Runs:
    """Encoded features of many, one after the other."""

    starts: NDArray[np.int64]
    sizes: NDArray[np.int64]
    indices: IndexArray
    values: NDArray[np.float64]

    @classmethod
    def of(cls, encoded: Sequence[EncodedFeatures]) -> _Runs:
        sizes = np.array([len(each.indices) for each in encoded], dtype=np.int64)
        return cls(
            np.concatenate([[0], np.cumsum(sizes)[:-1]]),
            sizes,
            np.concatenate([each.indices for each in encoded]),
            np.concatenate([each.values for each in encoded]).astype(np.float64),
        )

    def block(self, rows: NDArray[np.int64]) -> tuple[IndexArray, NDArray[np.float64]]:
        """Indices and values of rows that have the same number of them, (rows, number) each."""
        at = self.starts[rows][:, None] + np.arange(self.sizes[rows[0]])
        return self.indices[at], self.values[at]


@dataclass(slots=True)
class _Group:
    """Features of one group while they are being collected."""

    seed: int
    indices: list[int]
    values: list[float]

    def add(self, index: int, value: float) -> None:
        self.indices.append(index)
        self.values.append(value)

    def encoded(self) -> EncodedFeatures:
        try:
            # Cheaper than to look at each; if the sum is too large a single one need not be.
            near = sum(map(abs, self.values)) <= _LARGEST
            if not near and not np.abs(np.array(self.values, dtype=np.float64)).max() <= _LARGEST:
                raise InvalidInputError("", _TOO_LARGE)
        except OverflowError as error:
            raise InvalidInputError("", _TOO_LARGE) from error
        return EncodedFeatures(
            np.array(self.indices, dtype=np.uint64), np.array(self.values, dtype=np.float32)
        )


def _weights_at(
    weights: NDArray[np.float32] | NDArray[np.float64], indices: IndexArray
) -> NDArray[np.float64]:
    # As signed numbers they are looked up without a copy, and masked ones are the same.
    return weights.take(indices.view(np.int64)).astype(np.float64)


def _sums(values: NDArray[np.float64], sizes: list[int]) -> NDArray[np.float64]:
    """Sums of consecutive runs of values, which are so many each."""
    if 0 in sizes:
        owners = np.repeat(np.arange(len(sizes)), sizes)
        sums = np.bincount(owners, weights=values, minlength=len(sizes))
        return np.asarray(sums, dtype=np.float64)
    starts = np.array([0, *accumulate(sizes[:-1])])
    return np.asarray(np.add.reduceat(values, starts))


def _murmur(name: str, seed: int) -> int:
    try:
        # Encoded here: given a string with a lone surrogate, mmh3 ends the process.
        return mmh3.hash(name.encode(), seed, signed=False)
    except UnicodeEncodeError as error:
        raise InvalidInputError(name, f"expected valid Unicode: {error.reason}") from error


def _sorted_keys(path: str, value: dict[Any, Any]) -> list[str]:
    if not all(isinstance(key, str) for key in value):
        raise InvalidInputError(path, "expected the names of features to be strings")
    return sorted(value)


def _located(field: str, error: InvalidInputError) -> InvalidInputError:
    """The same error with its field as a path from the root of the request, fit for a response."""
    path = f"{field}.{error.field}" if error.field else field
    return InvalidInputError(path.encode(errors="backslashreplace").decode(), error.expected)
