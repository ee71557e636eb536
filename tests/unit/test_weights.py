"""A model's weights are packed once, in a file that all of its graphs map and that is always removed."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import structlog
from numpy.typing import NDArray

from elman_bundle import Bundle
from elman_server.engine import OnnxEngine
from elman_server.engine.providers import Opener, ProviderChoice
from elman_server.engine.weights import Weights
from tests.support.engines import make_engine, read, same
from tests.support.graphs import make_products_graph
from tests.support.reference import open_graph

_FOLDERS = "elman-weights-*"
_LIVING = """
import time
from pathlib import Path
from elman_server.engine.weights import Weights
from tests.support.graphs import make_products_graph
weights = Weights(Path("graph.onnx"), make_products_graph(), make_products_graph())
print("packed", flush=True)
time.sleep(600)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder that replaces the folder of temporary files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def run(graph: onnx.ModelProto, weights: Weights, x: NDArray[Any]) -> NDArray[Any]:
    options = onnxruntime.SessionOptions()
    weights.give_to(options)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    result: NDArray[Any] = session.run(None, {"x": x})[0]
    return result


def places(model: onnx.ModelProto) -> dict[str, list[int]]:
    """Return the offsets of each weight in the file, and of its packed form."""
    result: dict[str, list[int]] = {}
    for weight in model.graph.initializer:
        items = {item.key: item.value for item in weight.external_data}
        packed = [value.split("|")[1].split(";")[0] for key, value in items.items() if key.startswith("prepacked")]
        result[weight.name] = [int(offset) for offset in (*([items["offset"]] if "offset" in items else ()), *packed)]
    return result


@pytest.mark.parametrize("packed", [True, False])
def test_shared_weights_give_the_same_result_bit_exactly(packed: bool) -> None:
    """This includes weights that onnxruntime transforms when it loads the graph."""
    x = np.random.default_rng(1).standard_normal((5, 21), dtype=np.float32)
    expected = open_graph(make_products_graph().SerializeToString()).run(None, {"x": x})[0]
    graph = make_products_graph()
    weights = Weights(Path("graph.onnx"), graph, make_products_graph() if packed else None)
    assert len(places(graph)["first"]) == (2 if packed else 1)
    assert run(graph, weights, x).tobytes() == expected.tobytes()


def test_graphs_use_the_packed_weights(folder: Path) -> None:
    """Overwriting the packed weights changes the result, and the folder contains no other file."""
    x = np.random.default_rng(1).standard_normal((5, 21), dtype=np.float32)
    graph = make_products_graph()
    weights = Weights(Path("graph.onnx"), graph, make_products_graph())
    expected = run(graph, weights, x)
    (file,) = folder.glob(f"{_FOLDERS}/*")
    contents = np.memmap(file, np.float32, "r+")
    contents[places(graph)["first"][1] // contents.itemsize :] += 1
    contents.flush()
    assert not np.allclose(run(graph, weights, x), expected)


@pytest.mark.parametrize("name", ["elman", "lstm", "gru", "lstm-int8"])
def test_all_graphs_map_the_packed_weights(bundles: Mapping[str, Bundle], folder: Path, name: str) -> None:
    """The weights of each product are in the file in plain and packed form, aligned to cache lines."""
    engine = make_engine(bundles[name])
    result = places(engine._step.model)
    assert all(offset % 64 == 0 for offsets in result.values() for offset in offsets)
    products = [node for node in engine._step.model.graph.node if node.op_type.startswith(("Gemm", "MatMul"))]
    assert products
    assert all(len(result[engine._step.weights[node.input[1]]]) == 2 for node in products)
    (file,) = folder.glob(f"{_FOLDERS}/weights")
    read(engine, np.zeros((4, 2), np.int64), 2, count=4)
    before = Path("/proc/self/maps").read_text().count(str(file))
    read(engine, np.zeros((8, 2), np.int64), 2, count=8)
    assert Path("/proc/self/maps").read_text().count(str(file)) > before > 0


def test_without_disk_space_every_graph_packs_its_own_weights(
    bundles: Mapping[str, Bundle], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = np.random.default_rng(2).integers(0, 30, (6, 3))
    expected = read(make_engine(bundles["lstm"]), tokens, 3)
    monkeypatch.setattr(tempfile, "tempdir", str(folder / "missing"))
    with structlog.testing.capture_logs() as logged:
        shown, states = read(make_engine(bundles["lstm"]), tokens, 3)
    assert [entry["graph"] for entry in logged] == [str(bundles["lstm"].graph_path)]
    assert [values.tobytes() for values in shown] == [values.tobytes() for values in expected[0]]
    assert all(same(state, before) for state, before in zip(states, expected[1], strict=True))


def test_folders_are_removed_with_their_models(bundles: Mapping[str, Bundle], folder: Path) -> None:
    engine = OnnxEngine(bundles["gru"], capacity=2, opener=Opener(ProviderChoice.CPU, 1), run_seconds=0.005)
    assert len(list(folder.glob(_FOLDERS))) == 1
    del engine
    assert not list(folder.glob(_FOLDERS))


def test_files_of_a_killed_server_are_removed_by_the_next(folder: Path) -> None:
    """Files of a running server are kept."""
    living, killed = (
        subprocess.Popen([sys.executable, "-c", _LIVING], stdout=subprocess.PIPE, text=True) for _ in range(2)
    )
    try:
        for process in (living, killed):
            assert process.stdout is not None
            assert process.stdout.readline() == "packed\n"
        killed.kill()
        killed.wait()
        assert len(list(folder.glob(_FOLDERS))) == 2
        weights = Weights(Path("graph.onnx"), make_products_graph(), make_products_graph())
        assert len(list(folder.glob(_FOLDERS))) == 2
        del weights
    finally:
        for process in (living, killed):
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
