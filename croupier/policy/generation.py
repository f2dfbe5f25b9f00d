"""Generations: immutable, numbered policies that save to and load from a directory."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import msgspec
import numpy as np

from croupier.policy.errors import GenerationError, ScoringError
from croupier.policy.estimates import all_finite
from croupier.policy.exploration import Conservative, Exploration, Uniform
from croupier.policy.oracle import AutoOracle, load_oracle
from croupier.policy.oracle.tables import LinearOracle
from croupier.policy.recurrent import load_recurrent
from croupier.policy.tilt import Tilt

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from croupier.policy.estimates import Estimates, Uncertainty
    from croupier.policy.events import Action, Features
    from croupier.policy.kernel import Chosen
    from croupier.policy.recurrent import AtStep, RecurrentPolicy

__all__ = ("Generation", "Memory", "Provenance", "cold_start", "registered_model_name")

FORMAT_VERSION = 3
# The first formats that have tilts and recurrent policies. What has neither is written as before,
# for scorers of any version.
_WITH_TILT, _WITH_RECURRENT = 2, 3
_MANIFEST = "manifest.json"
_CHECKSUM = "manifest.sha256"
_ORACLE, _RECURRENT = "oracle", "recurrent"


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """How fast an oracle forgets, and what says so: see :mod:`croupier.offline.memory`.

    Attributes
    ----------
    autocorrelation
        Of the steps between estimates that were learned from successive blocks of the log, lag 1:
        near 0 if the world changes, -1/2 or less if estimates only swing.
    noise, drift
        Variances of an estimate by chance, and of what the world changes from a block to the next.
    kept
        What a row counts for one that is a block younger, in [0, 1].
    """

    autocorrelation: float
    noise: float
    drift: float
    kept: float


class Provenance(msgspec.Struct, frozen=True, kw_only=True):
    """Where a generation comes from: with the lake, enough to make the same one again.

    Attributes
    ----------
    parent
        Number of the champion when it was trained.
    lake_version
        Version of the interactions table it was trained on.
    code_version
        Croupier's version.
    loop_config
        SHA-256 of the loop's configuration in canonical JSON.
    seed
        Seed of everything random in its training.
    training_rows
        Interactions it learned from.
    created_us
        When it was trained, in microseconds since the Unix epoch, UTC.
    budget
        Reward that each of its decisions may lose in expectation because earlier ones have earned
        it, below 0 while they have earned too little; only a conservative exploration spends it.
    base_version
        Of one that learned online: the version of the interactions that it learned at once, before
        it learned what each commit up to `lake_version` has added. None if it learned all at once.
    learned_folds
        The first and the last fold that it, or its calibration, learned from; None where that
        isn't told.
    learned_from_us
        Time of the earliest decision that it learned from, in microseconds since the Unix epoch;
        later than the log's where there is a training window.
    learned_from_slices
        Whether decisions within uniform slices were among them.
    started_from
        Number of the generation whose oracle it went on teaching; None if it learned afresh.
    step
        How far it went from the champion's estimates to its own, in [0, 1]; less than 1 only where
        it was damped.
    memory
        How fast it forgot; None where its rows counted the same whatever their age.
    merged
        Numbers of the partitions that have learned side by side and of the rounds after each of
        which they were merged; None if one learner has learned all of it.
    """

    parent: int
    lake_version: int
    code_version: str
    loop_config: str
    seed: int
    training_rows: int
    created_us: int
    budget: float = 0.0
    base_version: int | None = None
    learned_folds: tuple[int, int] | None = None
    learned_from_us: int | None = None
    learned_from_slices: bool = True
    started_from: int | None = None
    merged: tuple[int, int] | None = None
    step: float = 1.0
    memory: Memory | None = None
    tilt_kl: float | None = None


class _Scores(Protocol):
    """The part of an oracle that a generation needs."""

    def score(self, context: Features, actions: Sequence[Action]) -> NDArray[np.float64]: ...

    def estimate(
        self, context: Features, actions: Sequence[Action], needs: Uncertainty = ...
    ) -> Estimates: ...

    def save(self, directory: Path) -> None: ...


@dataclass(frozen=True, slots=True)
class Generation:
    """An immutable policy: an oracle, an exploration and where they come from.

    Some have a recurrent policy in the place of an oracle, which decides from what came before in a
    session. They have a pmf at a step, see :mod:`croupier.policy.stepping`, and none by themselves.

    Attributes
    ----------
    loop
        The loop it belongs to.
    number
        Its place in the loop's history; 0 is the cold start, without an oracle.
    exploration
        Turns scores into probabilities.
    oracle
        Estimates rewards; None for the cold start.
    provenance
        None for the cold start.
    tilt
        Moves what exploration says towards actions of which there is too little in the log; None
        to play it as it is.
    recurrent
        Prefers actions by what came before; None of any other generation.
    step
        Where in a session it is; None if it isn't in one, as it is saved.
    """

    loop: str
    number: int
    exploration: Exploration
    oracle: _Scores | None
    provenance: Provenance | None
    tilt: Tilt | None = None
    recurrent: RecurrentPolicy | None = None
    step: AtStep | None = None

    def pmf(
        self,
        context: Features,
        actions: Sequence[Action],
        eligible: NDArray[np.bool_] | None = None,
        baseline: int | None = None,
    ) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
        """Probabilities of all actions and the scores they come from (None without an oracle).

        Parameters
        ----------
        context, actions
            The request.
        eligible
            Which actions may be chosen, shape (K,); all of them if None.
        baseline
            Index of the application's own choice, for explorations that fall back on it.

        Raises
        ------
        ScoringError
            If the oracle gives scores of the wrong number or not finite, no action is eligible, or
            it decides step by step and isn't at a step.
        """
        pmf, scores = self.untilted_pmf(context, actions, eligible, baseline)
        if self.tilt is None:
            return pmf, scores
        return self.tilt.applied(pmf, actions, eligible, floor=self.exploration.floor), scores

    def untilted_pmf(
        self,
        context: Features,
        actions: Sequence[Action],
        eligible: NDArray[np.bool_] | None = None,
        baseline: int | None = None,
    ) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
        """What :meth:`pmf` would say without a tilt: what a tilt is learned from."""
        if self.recurrent is not None:
            return self.exploration.pmf(self._preferences(actions), eligible), None
        if self.oracle is None:
            nothing = np.zeros(len(actions))
            return self.exploration.pmf(nothing, eligible, baseline=baseline), None
        estimates = self.oracle.estimate(context, actions, self.exploration.wants)
        scores = estimates.mean
        if scores.shape != (len(actions),):
            raise ScoringError(f"expected {len(actions)} scores, got shape {scores.shape}")
        # All scores are logged, and JSON has no NaN; an exploration looks at eligible ones alone.
        seen = eligible is None and self.exploration.needs_scores
        if not seen and not all_finite(scores):
            raise ScoringError("the oracle gave a score that is not finite")
        origin = self.provenance
        pmf = self.exploration.pmf(
            estimates,
            eligible,
            training_rows=0 if origin is None else origin.training_rows,
            baseline=baseline,
            budget=0.0 if origin is None else origin.budget,
        )
        return pmf, scores

    def _preferences(self, actions: Sequence[Action]) -> NDArray[np.float64]:
        if self.step is None:
            raise ScoringError(
                f"generation {self.number} decides step by step, and can be asked within a "
                f"session alone"
            )
        return self.step.for_actions(actions)

    def choose(self, context: Features, actions: Sequence[Action], number: float) -> Chosen | None:
        """Draw from :meth:`pmf`, with all actions eligible, in one call of the kernel.

        None where that can't be: most generations weigh the gaps between the estimates of a linear
        oracle, and that is what the kernel does. Everything else, a tilt among it, and every error
        is left to :meth:`pmf`.

        Parameters
        ----------
        context, actions
            The request.
        number
            In [0, 1), see :func:`~croupier.policy.sampling.uniform_of_key`.
        """
        oracle, origin = self.oracle, self.provenance
        if self.tilt is not None or not isinstance(oracle, LinearOracle | AutoOracle):
            return None
        rows = 0 if origin is None else origin.training_rows
        gamma = self.exploration.greediness(rows, len(actions))
        return None if gamma is None else oracle.choose(context, actions, gamma, number)

    def __reduce__(
        self,
    ) -> tuple[Callable[[dict[str, bytes]], Generation], tuple[dict[str, bytes]]]:
        """Its saved files: what is brought to another process is what would be served."""
        with tempfile.TemporaryDirectory() as folder:
            self.save(Path(folder) / "generation")
            return _unpacked, (_packed(Path(folder) / "generation"),)

    def save(self, directory: Path) -> None:
        """Write the generation to a directory that doesn't exist yet; all of it or nothing.

        Raises
        ------
        GenerationError
            If the directory exists: a generation is never written over.
        """
        if directory.exists():
            raise _exists(directory)
        directory.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
        try:
            if self.oracle is not None:
                (staging / _ORACLE).mkdir()
                self.oracle.save(staging / _ORACLE)
            if self.recurrent is not None:
                self.recurrent.save(staging / _RECURRENT)
            manifest = _Manifest(
                format_version=self._format,
                loop=self.loop,
                number=self.number,
                exploration=self.exploration,
                provenance=self.provenance,
                files=_digests(staging),
                tilt=self.tilt,
            )
            told = msgspec.to_builtins(manifest) | {"exploration": self.exploration.written()}
            encoded = msgspec.json.format(msgspec.json.encode(told))
            (staging / _MANIFEST).write_bytes(encoded)
            (staging / _CHECKSUM).write_text(hashlib.sha256(encoded).hexdigest())
            staging.chmod(0o755)
            _put_in_place(staging, directory)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise

    @property
    def _format(self) -> int:
        if self.recurrent is not None:
            return _WITH_RECURRENT
        return 1 if self.tilt is None else _WITH_TILT

    @classmethod
    def load(cls, directory: Path, *, to_learn: bool = False) -> Generation:
        """Read a generation back and check that no file was altered.

        Parameters
        ----------
        directory
            What :meth:`save` wrote.
        to_learn
            Whether its oracle is to learn on, see :func:`~croupier.policy.oracle.load_oracle`.

        Raises
        ------
        GenerationError
            If something is missing, altered or of a later format.
        """
        try:
            manifest = _read_manifest(directory)
            altered = _digests(directory).items() ^ manifest.files.items()
        except (OSError, ValueError, RecursionError, msgspec.MsgspecError) as error:
            raise GenerationError(
                f"the generation in {directory} can't be read: {error}"
            ) from error
        if altered:
            names = ", ".join(sorted({name for name, _ in altered}))
            raise GenerationError(f"{directory} was altered after it was saved: {names}")
        parts = {name.partition("/")[0] for name in manifest.files}
        oracle = load_oracle(directory / _ORACLE, to_learn=to_learn) if _ORACLE in parts else None
        recurrent = load_recurrent(directory / _RECURRENT) if _RECURRENT in parts else None
        return cls(
            manifest.loop,
            manifest.number,
            manifest.exploration,
            oracle,
            manifest.provenance,
            manifest.tilt,
            recurrent,
        )


def _packed(directory: Path) -> dict[str, bytes]:
    """All files below a directory, by their paths from there."""
    paths = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in paths}


def _unpacked(files: dict[str, bytes]) -> Generation:
    """The generation that was packed."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return Generation.load(Path(folder))


def cold_start(loop: str, exploration: Exploration | None = None) -> Generation:
    """Generation 0, for a loop that has learned nothing yet: uniform over the eligible actions.

    Where the loop's exploration is a conservative one, it is that mixture of the baseline and the
    uniform distribution that is safe whatever the rewards are.
    """
    if isinstance(exploration, Conservative):
        exploration = msgspec.structs.replace(exploration, inner=Uniform(), radius=0.0)
        return Generation(loop, 0, exploration, None, None)
    return Generation(loop, 0, Uniform(), None, None)


def registered_model_name(loop: str) -> str:
    """Name under which the registry holds a loop's generations."""
    return f"croupier-{loop}"


class _Format(msgspec.Struct, frozen=True):
    format_version: int


class _Manifest(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    format_version: int
    loop: str
    number: int
    exploration: Exploration
    provenance: Provenance | None
    files: dict[str, str]
    tilt: Tilt | None = None


def _read_manifest(directory: Path) -> _Manifest:
    encoded = (directory / _MANIFEST).read_bytes()
    # The format comes first: a later one may keep neither the other fields nor the checksum.
    found = msgspec.json.decode(encoded, type=_Format).format_version
    if not 1 <= found <= FORMAT_VERSION:
        raise GenerationError(
            f"{directory} has format {found}; this version of Croupier reads up to {FORMAT_VERSION}"
        )
    if (directory / _CHECKSUM).read_text() != hashlib.sha256(encoded).hexdigest():
        raise GenerationError(f"{directory} was altered after it was saved: {_MANIFEST}")
    return msgspec.json.decode(encoded, type=_Manifest)


def _digests(directory: Path) -> dict[str, str]:
    """SHA-256 of every file below a directory but the manifest and its sum, by relative path.

    Whatever is neither a regular file nor a directory counts as a file without content.
    """
    own = {directory / _MANIFEST, directory / _CHECKSUM}
    return {
        path.relative_to(directory).as_posix(): _digest(path)
        for path in sorted(directory.rglob("*"))
        if path not in own and (path.is_symlink() or not path.is_dir())
    }


def _digest(path: Path) -> str:
    regular = path.is_file() and not path.is_symlink()
    return hashlib.sha256(path.read_bytes()).hexdigest() if regular else ""


def _put_in_place(staging: Path, directory: Path) -> None:
    """Rename, which is all or nothing and replaces no directory that has anything in it."""
    try:
        staging.rename(directory)
    except OSError as error:
        # Another process can have saved it since the first look.
        if directory.exists():
            raise _exists(directory) from error
        raise


def _exists(directory: Path) -> GenerationError:
    return GenerationError(f"{directory} exists; a generation is never written over")
