"""The rows of a tensor may be on any axis that the manifest says; what cannot be served is refused by the manifest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from elman_bundle import Bundle
from tests.support.foreign_bundles import TOKENS, Foreign, Kept, Shown, mask_nodes
from tests.support.serving import serving

TABLE = np.random.default_rng(0).permutation(TOKENS**2).reshape(TOKENS, TOKENS).astype(np.float32)


def write(folder: Path, axis: int) -> Bundle:
    """A model whose scores are its state: the sum of the columns of a table for all tokens of the source, to which
    those of the tokens that it generates are added."""
    make = helper.make_node
    turn = {"perm": [1, 0]} if axis else {"perm": [0, 1]}
    return Foreign(
        [
            make("Gather", ["table", "token"], ["read"]),
            make("Transpose", ["read"], ["turned"], **turn),
            make("Add", ["state", "turned"], ["after"]),
            make("Transpose", ["after"], ["scores"], **turn),
        ],
        {"table": TABLE, "positions": np.array([1]), "last": np.array([2]), "0": np.array(0), "1": np.array(1)},
        {"state": Kept("after", [TOKENS], row_axis=axis, encoded=True)},
        {"scores": Shown("next_token", [TOKENS])},
        encoder=[
            make("Gather", ["table", "source"], ["features"]),
            *mask_nodes("positions", "last", "column"),
            make("Mul", ["features", "column"], ["masked"]),
            make("ReduceSum", ["masked", "positions"], ["sum"], keepdims=0),
            make("Transpose", ["sum"], ["state"], **turn),
        ],
    ).write(folder)


@pytest.mark.parametrize("axis", [0, 1])
async def test_rows_of_an_encoded_state(tmp_path: Path, axis: int) -> None:
    bundle = write(tmp_path, axis)
    async with serving(bundle) as running:
        for source in ("a", "hgfb", "cccccccccc"):
            stream = running.client.generate("d", source=source, max_tokens=6, temperature=0)
            found = "".join([chunk.text async for chunk in stream])
            state = sum(TABLE["abcdefgh".index(letter)] for letter in source) + TABLE[3]
            expected = ""
            for _ in range(6):
                expected += "abcdefgh"[int(state.argmax())]
                state = state + TABLE[int(state.argmax())]
            assert found == expected
