"""A generation as a model that MLflow serves: requests in, probabilities out.

``mlflow models serve`` and ``mlflow.pyfunc.load_model`` find this module by its name in the MLmodel
file of a registered generation. What they serve draws nothing and logs nothing: it tells what the
scorer's probabilities would be, for batches and for those who look at a generation elsewhere.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from croupier.policy.decision import (
    DecisionRequest,
    baseline_index,
    check_request,
    eligibility,
)
from croupier.policy.events import Action, Features
from croupier.policy.generation import Generation
from croupier.policy.stepping import as_logged

__all__ = ("ServedGeneration", "signature")

_context = msgspec.json.Decoder(Features)
_actions = msgspec.json.Decoder(list[Action])
_ids = msgspec.json.Decoder(list[str])


class ServedGeneration:
    """A generation that answers to rows of a data frame.

    Parameters
    ----------
    generation
        What to serve.
    """

    def __init__(self, generation: Generation) -> None:
        self.generation = generation

    def predict(self, model_input: Any, params: object = None) -> Any:  # noqa: ARG002
        """Probabilities and scores of every row's actions.

        Parameters
        ----------
        model_input
            A data frame of pandas' with the columns of :func:`signature`.
        params
            MLflow's; there are none.

        Raises
        ------
        InvalidInputError
            If a request can't be.
        """
        import pandas as pd  # type: ignore[import-untyped]  # noqa: PLC0415 - slow to import

        answers = [self._answer(row) for row in model_input.to_dict("records")]
        return pd.DataFrame(answers, columns=["pmf", "scores"])

    def _answer(self, row: dict[Any, Any]) -> tuple[list[float], list[float] | None]:
        request = DecisionRequest(
            context=_context.decode(row["context"]),
            actions=_actions.decode(row["actions"]),
            excluded=_ids.decode(row["excluded"]) if _given(row.get("excluded")) else [],
            baseline=row["baseline"] if _given(row.get("baseline")) else None,
        )
        check_request(request)
        # A row stands for itself: a generation that remembers takes it for a first step.
        generation = as_logged(self.generation, request.context, None)
        pmf, scores = generation.pmf(
            request.context, request.actions, eligibility(request), baseline_index(request)
        )
        return pmf.tolist(), None if scores is None else scores.tolist()


def signature() -> Any:
    """The model's signature: what columns there are of a request and of its answer."""
    from mlflow.models import ModelSignature  # noqa: PLC0415 - takes seconds
    from mlflow.types import ColSpec, DataType, Schema  # noqa: PLC0415
    from mlflow.types.schema import Array  # noqa: PLC0415

    text, numbers = DataType.string, Array(DataType.double)
    return ModelSignature(
        inputs=Schema(
            [
                ColSpec(text, "context"),
                ColSpec(text, "actions"),
                ColSpec(text, "excluded", required=False),
                ColSpec(text, "baseline", required=False),
            ]
        ),
        outputs=Schema([ColSpec(numbers, "pmf"), ColSpec(numbers, "scores", required=False)]),
    )


def _given(value: object) -> bool:
    """Whether an optional column has a value; pandas says None and NaN for those that don't."""
    return value is not None and not (isinstance(value, float) and np.isnan(value))


def _load_pyfunc(path: str) -> ServedGeneration:
    """What MLflow calls, with the directory of the generation."""
    return ServedGeneration(Generation.load(Path(path)))
