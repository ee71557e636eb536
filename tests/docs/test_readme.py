"""The README is true: its code runs, its calls work, its options exist."""

from __future__ import annotations

import ast
import asyncio
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import json_format
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from elman_bundle import Bundle, load_bundle
from elman_export import Labels, Values, export_bundle
from elman_export.network_steps import FeaturesStep
from elman_training.features.feed_forward_network import FeedForwardNetwork
from tests.support.bundles import byte_bundle
from tests.support.encoder_models import judge_bundle, translator_bundle
from tests.support.paths import ROOT
from tests.support.serving import serving
from tests.support.shared import shared_bundle

README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
CLIENT_CODE, DECODING_CODE, SEQUENCE_CODE, MANY_CODE, ANALYSIS_CODE, SESSION_CODE, OWN_CELL_CODE = re.findall(
    r"```python\n(.*?)```", README, flags=re.DOTALL
)
COMMANDS = re.findall(r"^    (.+?)(?:  +#.*)?$", README, flags=re.MULTILINE)


def run_code(code: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, encoding="utf-8", timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


async def test_client_code_runs(bundles: Mapping[str, Bundle], tmp_path: Path) -> None:
    async with serving(bundles["gru"], bundles["tags"]) as running:
        code = CLIENT_CODE.replace("Client()", f"Client({running.address!r})")
        shown = await asyncio.to_thread(run_code, code, tmp_path)
    assert "gru 7 FinishReason.MAX_TOKENS" in shown
    assert "{'sampling.temperature': 'got -1.0; must be" in shown


async def test_decoding_code_runs(tmp_path: Path) -> None:
    async with serving(byte_bundle()) as running:
        code = DECODING_CODE.replace("Client()", f"Client({running.address!r})").replace('"python"', '"bytes"')
        shown = await asyncio.to_thread(run_code, code, tmp_path)
    assert "FinishReason.CONSTRAINT Usage(step_count=" in shown
    assert shown.count("FinishReason.") == 1 + 3


def export_digits(folder: Path) -> None:
    export_bundle(
        FeaturesStep(FeedForwardNetwork(features=64, outputs=10, layers=1, hidden=8, dropout=0.0, input_noise=0.0)),
        folder,
        name="digits",
        inputs={"features": Values((64,))},
        outputs={"logits": Labels([str(digit) for digit in range(10)])},
    )


@pytest.fixture(scope="module")
def sequence_bundles(tree_bundles: Mapping[str, Bundle]) -> Mapping[str, Bundle]:
    """Small models in the place of those that the README's section on sequences speaks of."""
    return {
        "phonemes": translator_bundle(),
        "sentiment-bidirectional": judge_bundle(),
        "sentiment-binary-tree": tree_bundles["binary"],
        "digits": shared_bundle("digits", export_digits),
    }


def with_names_of(bundles: Mapping[str, Bundle], text: str) -> str:
    for name, bundle in bundles.items():
        text = text.replace(f'"{name}"', f'"{bundle.name}"')
    return text


async def test_sequence_code_runs(sequence_bundles: Mapping[str, Bundle], tmp_path: Path) -> None:
    async with serving(*sequence_bundles.values(), chunk_ms=0.5) as running:
        code = SEQUENCE_CODE.replace("Client()", f"Client({running.address!r})")
        shown = (await asyncio.to_thread(run_code, with_names_of(sequence_bundles, code), tmp_path)).splitlines()
    assert re.fullmatch(r"-\d\.\d{3} .*", shown[1])
    assert re.fullmatch(r"[01] \[[01]\.\d+, [01]\.\d+\]", shown[3])
    assert shown[4] in ("bad", "fair", "good")
    assert len(ast.literal_eval(shown[5])) == 3
    assert shown[6] in "0123456789"


async def test_many_code_runs(sequence_bundles: Mapping[str, Bundle], tmp_path: Path) -> None:
    async with serving(sequence_bundles["phonemes"], chunk_ms=0.5) as running:
        code = MANY_CODE.replace("Client()", f"Client({running.address!r})")
        shown = await asyncio.to_thread(run_code, with_names_of(sequence_bundles, code), tmp_path)
    assert len(ast.literal_eval(shown)) == 3


async def test_analysis_code_runs(bundles: Mapping[str, Bundle], tmp_path: Path) -> None:
    async with serving(bundles["gru"], bundles["tags"]) as running:
        code = ANALYSIS_CODE.replace("Client()", f"Client({running.address!r})").replace('"python"', '"gru"')
        shown = await asyncio.to_thread(run_code, code, tmp_path)
    assert shown.count(" nats a token, perplexity ") == 3
    assert shown.count("{'state.layer0.hidden': (") == 2
    assert [line.partition("(")[0] for line in shown.splitlines()[-5:]] == [f"'{letter}' " for letter in "def f"]


async def test_session_code_runs(bundles: Mapping[str, Bundle], tmp_path: Path) -> None:
    async with serving(bundles["gru"], bundles["tags"]) as running:
        code = SESSION_CODE.replace("Client()", f"Client({running.address!r})").replace('"python"', '"gru"')
        shown = await asyncio.to_thread(run_code, code, tmp_path)
    assert f"somebody was faster; the session is at {len('def load(self, path):') + 100}" in shown


async def test_own_cell_is_exported_and_served(tmp_path: Path) -> None:
    assert OWN_CELL_CODE.index("export_bundle(\n") > 0
    assert len(OWN_CELL_CODE[: OWN_CELL_CODE.index("export_bundle(\n")].strip().splitlines()) <= 30
    await asyncio.to_thread(run_code, OWN_CELL_CODE, tmp_path)
    async with serving(load_bundle(tmp_path / "bundles" / "leaky")) as running:
        assert len(await running.client.generate("hello ", max_tokens=50).text()) == 50


def call_by_reflection(address: str, method: str, data: str) -> list[dict[str, Any]]:
    """What grpcurl does: learn the types from the server, send JSON, read JSON."""
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


async def test_grpcurl_commands_work(bundles: Mapping[str, Bundle], sequence_bundles: Mapping[str, Bundle]) -> None:
    commands = [shlex.split(command) for command in COMMANDS if command.startswith("grpcurl")]
    assert len(commands) == 8 + 4
    async with serving(bundles["gru"], bundles["tags"], *sequence_bundles.values()) as running:
        for command in commands:
            data = command[command.index("-d") + 1].replace('"python"', '"gru"') if "-d" in command else "{}"
            data = with_names_of(sequence_bundles, data)
            if data == '{"text": "x = 1"}':  # Among so many models it has to say which; `make run` has one with labels.
                data = '{"text": "x = 1", "model": "tags"}'
            elif data.startswith('{"text": "def "'):
                data = data.replace("{", '{"model": "gru", ', 1)
            answers = await asyncio.to_thread(call_by_reflection, running.address, command[-1], data)
            assert answers
            if command[-1].endswith("/Generate"):
                assert "started" in answers[0]
                if "max_tokens" in json.loads(data):
                    assert answers[-1]["finished"]["generatedTokenCount"] == json.loads(data)["max_tokens"]


@pytest.mark.parametrize("command", sorted({line for line in COMMANDS if line.startswith(("elman ", "$ elman "))}))
def test_commands_have_the_options_shown(command: str) -> None:
    for part in command.removeprefix("$ ").split(" && "):
        words = shlex.split(part.split(" < ")[0])
        name = words[1:3] if words[1] == "session" else words[1:2]
        shown = subprocess.run(
            [sys.executable, "-m", "elman.cli", *name, "--help"],
            capture_output=True, encoding="utf-8", timeout=60, check=True, env={"COLUMNS": "300", "PATH": ""},
        ).stdout  # fmt: skip
        for word in words[2:]:
            if word.startswith("--"):
                assert f"{word} " in shown


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^    make ([a-z]+)", README + CONTRIBUTING, flags=re.MULTILINE):
        assert f"\n{target}:" in makefile
