"""The documentation is true: its Python code runs, and its calls work, against a real server."""

from __future__ import annotations

import ast
import asyncio
import json
import re
import shlex
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import grpc
import onnx
import pytest
import pytest_asyncio
from google.protobuf import json_format
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from elman_bundle import Bundle, load_bundle
from elman_export import Labels, Values, export_bundle
from elman_export.network_steps import FeaturesStep
from elman_training.features.feed_forward_network import FeedForwardNetwork
from tests.support.bundles import byte_bundle
from tests.support.documents import pages
from tests.support.encoder_models import judge_bundle, translator_bundle
from tests.support.serving import serving
from tests.support.shared import shared_bundle

CODE = {page.path: page for page in pages() if page.python}
CALLS = {page.path: page for page in pages() if any(line.startswith("grpcurl") for line in page.commands)}
# Pages that export a module and call no server.
INTEGERS = CODE.pop("docs/explanation/int8.md")
OWN_MODULE = CODE.pop("docs/tutorials/your-own-module.md")
# The first test exports all models, unless another module has done so.
pytestmark = pytest.mark.timeout(300)
# The models that `make run` serves; the others are named by each request.
OF_MAKE_RUN = ("python", "python-tags")


def export_digits(folder: Path) -> None:
    export_bundle(
        FeaturesStep(FeedForwardNetwork(features=64, outputs=10, layers=1, hidden=8, dropout=0.0, input_noise=0.0)),
        folder,
        name="digits",
        inputs={"features": Values((64,))},
        outputs={"logits": Labels([str(digit) for digit in range(10)])},
    )


@pytest.fixture(scope="module")
def models(bundles: Mapping[str, Bundle], tree_bundles: Mapping[str, Bundle]) -> Mapping[str, Bundle]:
    """Small untrained models in place of those that the pages name."""
    return {
        "python": byte_bundle(),
        "python-tags": bundles["tags"],
        "phonemes": translator_bundle(),
        "sentiment-bidirectional": judge_bundle(),
        "sentiment-binary-tree": tree_bundles["binary"],
        "digits": shared_bundle("digits", export_digits),
    }


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def address_of(models: Mapping[str, Bundle]) -> AsyncIterator[Callable[[str], str]]:
    """The address of a server that has the models which a text names, or those of `make run`."""
    others = [bundle for name, bundle in models.items() if name not in OF_MAKE_RUN]
    usual = [models[name] for name in OF_MAKE_RUN]
    async with serving(*usual) as small, serving(*usual, *others, chunk_ms=0.5) as large:

        def address(text: str) -> str:
            named = any(f'"{name}"' in text for name in models if name not in OF_MAKE_RUN)
            return large.address if named else small.address

        yield address


def with_served_names(models: Mapping[str, Bundle], text: str) -> str:
    for name, bundle in models.items():
        text = text.replace(f'"{name}"', f'"{bundle.name}"')
    return text


def run_code(code: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, encoding="utf-8", timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_here(code: str) -> None:
    """Run code that needs torch, which this process has imported already."""
    exec(compile(code, "page", "exec"), {"__name__": "page"})


def check_first_stream(shown: str) -> None:
    assert "bytes 7 FinishReason.MAX_TOKENS" in shown
    assert "{'sampling.temperature': 'got -1.0; must be" in shown


def check_readme(shown: str) -> None:
    assert "bytes 7 FinishReason.MAX_TOKENS" in shown


def check_constrain(shown: str) -> None:
    assert "FinishReason.CONSTRAINT Usage(step_count=" in shown


def check_decode(shown: str) -> None:
    assert shown.count("FinishReason.") == 3


def check_translate(shown: str) -> None:
    lines = shown.splitlines()
    assert re.fullmatch(r"-\d\.\d{3} .*", lines[1])
    assert re.fullmatch(r"[01] \[[01]\.\d+, [01]\.\d+\]", lines[3])


def check_classify(shown: str) -> None:
    *pieces, digit, judged = shown.splitlines()
    assert [int(piece.partition(" ")[0]) for piece in pieces] == [5, 9]
    assert re.fullmatch(r"[0-9] [01]\.\d+", digit)
    assert re.fullmatch(r"(bad|fair|good) \[.*\]", judged)


def check_trees(shown: str) -> None:
    assert len(ast.literal_eval(shown)) == 3


def check_batch_calls(shown: str) -> None:
    assert len(ast.literal_eval(shown)) == 3


def check_look_inside(shown: str) -> None:
    assert shown.count(" nats a token, perplexity ") == 3
    assert shown.count("{'state.layer0.hidden': (") == 2
    assert [line.partition("(")[0] for line in shown.splitlines()[-5:]] == [f"'{letter}' " for letter in "def f"]


def check_sessions(shown: str) -> None:
    assert f"another call was faster; the session is at {len('def load(self, path):') + 100}" in shown


def check_back_up(shown: str) -> None:
    assert re.fullmatch(r"True \d+\n", shown)


CHECKS = {
    "README.md": check_readme,
    "docs/tutorials/first-stream.md": check_first_stream,
    "docs/tutorials/sessions.md": check_sessions,
    "docs/how-to/back-up.md": check_back_up,
    "docs/how-to/batch-calls.md": check_batch_calls,
    "docs/how-to/classify.md": check_classify,
    "docs/how-to/constrain.md": check_constrain,
    "docs/how-to/decode.md": check_decode,
    "docs/how-to/look-inside.md": check_look_inside,
    "docs/how-to/translate.md": check_translate,
    "docs/how-to/trees.md": check_trees,
}


@pytest.mark.parametrize("path", sorted(CODE))
@pytest.mark.asyncio(loop_scope="module")
async def test_python_code_runs(
    path: str, models: Mapping[str, Bundle], address_of: Callable[[str], str], tmp_path: Path
) -> None:
    code = CODE[path].python
    code = code.replace("Client()", f"Client({address_of(code)!r})")
    CHECKS[path](await asyncio.to_thread(run_code, with_served_names(models, code), tmp_path))


def test_module_of_numbers_is_exported_in_integers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_here(INTEGERS.python)
    graph = onnx.load(load_bundle(tmp_path / "bundles" / "monitor-int8").graph_path).graph
    assert "MatMulIntegerToFloat" in {node.op_type for node in graph.node}


async def test_own_module_is_exported_and_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = OWN_MODULE.python
    assert len(code[: code.index("export_bundle(\n")].strip().splitlines()) <= 30
    monkeypatch.chdir(tmp_path)
    run_here(code)
    leaky, monitor = (load_bundle(tmp_path / "bundles" / name) for name in ("leaky", "monitor"))
    async with serving(leaky, monitor) as running:
        assert len(await running.client.generate("hello ", model="leaky", max_tokens=50).text()) == 50
        assert len((await running.client.classify([[0.0] * 3] * 4, model="monitor")).steps) == 4


def call_by_reflection(address: str, method: str, data: str) -> list[dict[str, Any]]:
    """Do what grpcurl does: get the types from the server, send JSON, read JSON."""
    with grpc.insecure_channel(address) as channel:
        pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
        service, _, name = method.partition("/")
        found = pool.FindServiceByName(service).FindMethodByName(name)
        request = json_format.Parse(data, GetMessageClass(found.input_type)())
        kind = f"{'stream' if found.client_streaming else 'unary'}_{'stream' if found.server_streaming else 'unary'}"
        call = getattr(channel, kind)(
            f"/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=GetMessageClass(found.output_type).FromString,
        )
        answer = call(iter([request]) if found.client_streaming else request, timeout=30)
        return [json_format.MessageToDict(message) for message in (answer if found.server_streaming else [answer])]


@pytest.mark.parametrize("path", sorted(CALLS))
@pytest.mark.asyncio(loop_scope="module")
async def test_grpcurl_commands_work(path: str, models: Mapping[str, Bundle], address_of: Callable[[str], str]) -> None:
    for line in CALLS[path].commands:
        if not line.startswith("grpcurl "):
            continue
        command = shlex.split(line)
        data = command[command.index("-d") + 1] if "-d" in command else "{}"
        address = address_of(data)
        data = with_served_names(models, data)
        answers = await asyncio.to_thread(call_by_reflection, address, command[-1], data)
        assert answers, line
        if command[-1].endswith("/Generate"):
            assert "started" in answers[0]
            if "max_tokens" in json.loads(data):
                assert answers[-1]["finished"]["generatedTokenCount"] == json.loads(data)["max_tokens"]


def test_the_pages_have_as_many_calls_as_expected() -> None:
    lines = [line for page in CALLS.values() for line in page.commands if line.startswith("grpcurl")]
    assert len(lines) == 13
    assert set(CHECKS) == set(CODE)
