"""Generations as archives, and archives that are none."""

from __future__ import annotations

import io
import zipfile
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from croupier.control.archive import pack, unpack
from croupier.policy.errors import InvalidInputError
from croupier.policy.events import Action
from croupier.policy.exploration import Custom, Exploration, Greedy
from croupier.policy.generation import Generation, cold_start
from croupier.policy.loop import LoopConfig
from croupier.policy.oracle import VowpalWabbitModelConfig
from tests.service.generations import generation

ACTIONS = [Action("a", {"x": 1}), Action("b", {"x": 2})]
GREEDY = LoopConfig(exploration=Greedy())
LARGE = 1 << 20


def unpacked(content: bytes, max_bytes: int = LARGE) -> Generation:
    return unpack(content, max_bytes=max_bytes, configured=GREEDY)


def files_of(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return content.getvalue()


def test_a_generation_comes_back_as_it_was_and_the_archive_is_always_the_same() -> None:
    whole = generation("digits", 3)
    content = pack(whole)
    assert pack(whole) == content
    back = unpacked(content)
    assert (back.loop, back.number, back.exploration) == ("digits", 3, whole.exploration)
    for one, other in zip(whole.pmf({"c": 1}, ACTIONS), back.pmf({"c": 1}, ACTIONS), strict=True):
        assert np.array_equal(np.asarray(one), np.asarray(other))
    assert pack(back) == content
    assert unpacked(zipped(files_of(content))).number == 3
    assert unpacked(pack(cold_start("digits"))).oracle is None


def test_sizes_are_bounded_whatever_the_archive_says() -> None:
    content = pack(generation("digits", 3))
    size = sum(map(len, files_of(content).values()))
    with pytest.raises(InvalidInputError, match="at most 100 bytes"):
        unpacked(content, 100)
    # Zeros take no room in a file of arrays, until somebody reads it.
    zeros = io.BytesIO()
    np.savez_compressed(zeros, weights=np.zeros(LARGE, dtype=np.float32))
    files = files_of(content) | {"oracle/weights.npz": zeros.getvalue()}
    with pytest.raises(InvalidInputError, match="bytes of arrays"):
        unpacked(zipped(files), 2 * size + LARGE)
    with pytest.raises(InvalidInputError, match="at most 64 files"):
        unpacked(zipped({f"file-{number}": b"" for number in range(65)}))


@pytest.mark.parametrize(
    "changed",
    [
        {"oracle/weights.npz": b"no archive"},
        {"oracle/oracle.json": b"{"},
        {"oracle/oracle.json": b"{}"},
        {"oracle/more": b"x"},
        {"manifest.json": b"{}"},
        {"manifest.json": b"\xff"},
        {"manifest.sha256": b"0" * 64},
        {"../up": b"x"},
        {"a/../../up": b"x"},
        {"/absolute": b"x"},
        {"back\\slash": b"x"},
    ],
    ids=str,
)
def test_what_was_altered_is_refused(changed: dict[str, bytes]) -> None:
    files = files_of(pack(generation("digits", 3)))
    with pytest.raises(InvalidInputError) as refused:
        unpacked(zipped(files | changed))
    assert refused.value.field == "body"
    assert "/tmp" not in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"PK", b"\x00" * 100, b"vw 9.10.0 model"])
def test_what_is_no_archive_is_refused(content: bytes) -> None:
    with pytest.raises(InvalidInputError, match="Vowpal Wabbit can't be taken over"):
        unpacked(content)


class Flat:
    """A user's own exploration."""

    def probabilities(self, scores: np.ndarray, training_rows: int) -> np.ndarray:
        return np.full(scores.size, 1.0 / scores.size)


def test_only_the_configured_class_of_a_users_is_imported() -> None:
    custom: Exploration = Custom(path=f"{__name__}:Flat")
    other: Exploration = Custom(path=f"{__name__}:Flat", floor=0.1)
    content = pack(replace(generation("digits", 3), exploration=custom))
    assert (
        unpack(content, max_bytes=LARGE, configured=LoopConfig(exploration=custom)).exploration
        == custom
    )
    with pytest.raises(InvalidInputError, match="no exploration of kind custom"):
        unpacked(content)
    with pytest.raises(InvalidInputError, match="no exploration of kind custom"):
        unpack(content, max_bytes=LARGE, configured=LoopConfig(exploration=other))


def test_models_for_other_programs_go_to_loops_that_have_such_a_one() -> None:
    files = files_of(pack(generation("digits", 3)))
    saved = msgspec.json.decode(files["oracle/oracle.json"])
    saved["config"] = {"kind": "vowpal_wabbit_model"}
    model = {"oracle/oracle.json": msgspec.json.encode(saved), "oracle/model.vw": b"x"}
    altered = zipped(files | model)
    with pytest.raises(InvalidInputError, match=r"the loop's kind of oracle, auto$"):
        unpacked(altered)
    own = LoopConfig(exploration=Greedy(), oracle=VowpalWabbitModelConfig())
    # There it is looked at, and found to be none.
    with pytest.raises(InvalidInputError, match="altered after it was saved"):
        unpack(altered, max_bytes=LARGE, configured=own)
