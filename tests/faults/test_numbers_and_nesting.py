"""Numbers of thousands of digits and texts nested a thousand deep are refused by name."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import save

from elman_server.decoding.constraints.syntaxes.schema_check import check_schema
from elman_server.errors import ConstraintError, SessionFileError
from elman_server.sessions.file import _checksum, read_file

HUGE = "9" * 4300


def session_file(**changes: str) -> bytes:
    tensors = {"tokens": np.zeros(3, np.int32)}
    metadata = {"format": "elman.session.v1", "session_id": "s", "model": "m", "digest": "d", "position": "3"}
    metadata |= {"seed": "1", "state_position": "0", **changes}
    return save(tensors, {**metadata, "checksum": _checksum(metadata, tensors)})


def test_a_sound_file_is_read() -> None:
    assert read_file(session_file(seed=str(-(2**63)))).seed == -(2**63)


@pytest.mark.parametrize("name", ["seed", "state_position"])
@pytest.mark.parametrize("value", [HUGE, f"-{HUGE}", str(2**63), "1" * 5000])
def test_numbers_of_a_session_file_have_64_bits(name: str, value: str) -> None:
    with pytest.raises(SessionFileError, match=f"{name} .*; the {name} of a session is an integer of 64 bits"):
        read_file(session_file(**{name: value}))


@pytest.mark.parametrize("depth", [200, 985, 5000, 100_000])
@pytest.mark.parametrize(
    ("opening", "closing"), [("[", "]"), ('{"x-a":', "}"), ('{"allOf":[', "]}"), ('{"properties":{"a":', "}}")]
)
def test_deeply_nested_schemas_are_refused(opening: str, closing: str, depth: int) -> None:
    with pytest.raises(ConstraintError, match="nested too deeply"):
        check_schema(opening * depth + "{}" + closing * depth)


def test_a_schema_may_be_nested_a_little() -> None:
    text = '{"properties":{"a":' * 20 + "{}" + "}}" * 20
    assert check_schema(text) == json.loads(text)
