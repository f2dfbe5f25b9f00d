"""ONNX graphs of fitted scikit-learn estimators, and sessions that run them.

skl2onnx converts whatever it can. The trees of histogram gradient boosting are written here: under
scikit-learn 1.9 its converter fails, and before that it rounded their thresholds to the nearest
float32, which sends a value between the two to the wrong side.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from croupier.policy.errors import GenerationError, InexpressibleError
from croupier.policy.oracle.scikit_learn import classifies

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

__all__ = ("INPUT", "graph_of", "session_of")

INPUT = "rows"
_OUTPUT = "reward"
# What the oldest ONNX Runtime that is allowed reads as well.
_OPSETS = {"": 17, "ai.onnx.ml": 3}
_IR_VERSION = 8


def graph_of(path: str, estimator: Any, width: int, metadata: Mapping[str, str]) -> bytes:
    """A graph from float32 rows to what is predicted of each; the last column if there are several.

    Parameters
    ----------
    path
        Of the estimator's class, for the error.
    estimator
        A fitted regressor or binary classifier.
    width
        Of the rows.
    metadata
        To be kept in the file.

    Raises
    ------
    InexpressibleError
        If there is no such graph.
    """
    from sklearn.ensemble import (  # noqa: PLC0415
        HistGradientBoostingClassifier,
        HistGradientBoostingRegressor,
    )

    boosted = (HistGradientBoostingClassifier, HistGradientBoostingRegressor)
    try:
        if isinstance(estimator, boosted):
            model = _boosted_trees(estimator, width)
        else:
            model = _converted(estimator, width)
    except Exception as error:  # Converters raise whatever comes up.
        raise InexpressibleError(
            f"oracle.estimator: expected one that ONNX can express (an oracle of kind distilled "
            f"serves a table of any other), got {path!r}: {error}"
        ) from error
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    return bytes(model.SerializeToString(deterministic=True))


def session_of(model: bytes) -> Any:
    """A session that runs a graph on the calling thread, from any number of them at once.

    Raises
    ------
    GenerationError
        If it can't be run.
    """
    import onnxruntime  # noqa: PLC0415 - slow to import, and not every process scores

    options = onnxruntime.SessionOptions()
    # Requests are small, and the scorer's threads are what uses the cores.
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    # Decisions have all sorts of sizes, each of which would be remembered.
    options.enable_mem_pattern = False
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # Its exceptions have no base of their own.
        raise GenerationError(f"ONNX Runtime can't run the model: {error}") from error


def _converted(estimator: Any, width: int) -> Any:
    """The graph that skl2onnx makes, without a classifier's labels."""
    from skl2onnx import to_onnx  # noqa: PLC0415
    from skl2onnx.common.data_types import FloatTensorType  # noqa: PLC0415

    options = {id(estimator): {"zipmap": False}} if classifies(estimator) else None
    model = to_onnx(
        estimator,
        name="oracle",
        initial_types=[(INPUT, FloatTensorType([None, width]))],
        target_opset=_OPSETS,
        options=options,
    )
    del model.graph.output[:-1]
    return model


def _boosted_trees(estimator: Any, width: int) -> Any:
    """The graph of histogram gradient boosting: trees, their sum, and the inverse of the link."""
    from onnx import TensorProto, helper  # noqa: PLC0415

    trees = [predictor.nodes for (predictor,) in estimator._predictors]  # noqa: SLF001
    if any(nodes["is_categorical"].any() for nodes in trees):
        raise ValueError("its splits of categories can't be expressed")
    inverse = _inverse_link(estimator)
    summed = _OUTPUT if inverse is None else "sum"
    nodes = [
        helper.make_node(
            "TreeEnsembleRegressor",
            [INPUT],
            [summed],
            domain="ai.onnx.ml",
            n_targets=1,
            aggregate_function="SUM",
            post_transform="NONE",
            base_values=[float(np.float32(np.ravel(estimator._baseline_prediction)[0]))],  # noqa: SLF001
            **_attributes(trees),
        )
    ]
    if inverse is not None:
        nodes.append(helper.make_node(inverse, [summed], [_OUTPUT]))
    rows = helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, [None, width])
    reward = helper.make_tensor_value_info(_OUTPUT, TensorProto.FLOAT, [None, 1])
    return helper.make_model(
        helper.make_graph(nodes, "oracle", [rows], [reward]),
        opset_imports=[helper.make_opsetid(domain, n) for domain, n in _OPSETS.items()],
        ir_version=_IR_VERSION,
    )


def _inverse_link(estimator: Any) -> str | None:
    """The operator that makes predictions of sums; None if they are the same."""
    if classifies(estimator):
        return "Sigmoid"
    return "Exp" if estimator.loss in {"poisson", "gamma"} else None


def _attributes(trees: list[NDArray[Any]]) -> dict[str, Any]:
    """Attributes of the operator: one entry per node of all trees, and one per leaf."""
    sizes = [len(nodes) for nodes in trees]
    tree = np.repeat(np.arange(len(trees)), sizes)
    node = np.concatenate([np.arange(size) for size in sizes])
    every = np.concatenate(trees)
    leaf = every["is_leaf"].astype(bool)
    inner = ~leaf
    # A leaf has neither a feature nor a threshold nor children; what stands there isn't looked at.
    return {
        "nodes_treeids": tree.tolist(),
        "nodes_nodeids": node.tolist(),
        "nodes_modes": np.where(leaf, "LEAF", "BRANCH_LEQ").tolist(),
        "nodes_featureids": np.where(inner, every["feature_idx"], 0).tolist(),
        "nodes_values": _rounded_down(np.where(inner, every["num_threshold"], 0.0)).tolist(),
        "nodes_truenodeids": np.where(inner, every["left"], 0).tolist(),
        "nodes_falsenodeids": np.where(inner, every["right"], 0).tolist(),
        "target_treeids": tree[leaf].tolist(),
        "target_nodeids": node[leaf].tolist(),
        "target_ids": np.zeros(int(leaf.sum()), dtype=np.int64).tolist(),
        "target_weights": every["value"][leaf].astype(np.float32).tolist(),
    }


def _rounded_down(thresholds: NDArray[np.float64]) -> NDArray[np.float32]:
    """The largest float32 that is not above: x <= t says the same of both for any float32 x."""
    with np.errstate(over="ignore"):
        rounded = thresholds.astype(np.float32)
    above = rounded.astype(np.float64) > thresholds
    return np.where(above, np.nextafter(rounded, np.float32(-np.inf)), rounded)
