"""Where a model runs, and sessions of onnxruntime on it. CUDA is taken where it really loads, never silently not."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import onnxruntime

from elman_server.engine.threads import Cores
from elman_server.engine.weights import Weights
from elman_server.errors import ModelLoadError
from elman_server.settings import ProviderChoice

_WARNING, _FATAL = 2, 4
_SPIN_MICROSECONDS = 300


class Provider(StrEnum):
    """What a session runs on."""

    CPU = "cpu"
    CUDA = "cuda"


_ONNXRUNTIME_NAMES = {Provider.CPU: "CPUExecutionProvider", Provider.CUDA: "CUDAExecutionProvider"}


@dataclass(frozen=True)
class OpenedSession:
    """A session and where it runs.

    Attributes:
        session: the session.
        provider: where it runs.
        captures: whether its runs are captured as CUDA graphs, which then are replayed without a word from the host.
        cores: on which the threads of its runs stay.
    """

    session: onnxruntime.InferenceSession
    provider: Provider
    captures: bool = False
    cores: Cores = field(default_factory=Cores)


@dataclass(frozen=True)
class Opener:
    """Opens sessions.

    Attributes:
        choice: where graphs are to run; AUTO takes CUDA if it loads, else the CPU.
        threads: how many threads one run may use on the CPU.
        cores: on which these stay.
    """

    choice: ProviderChoice
    threads: int
    cores: Cores = field(default_factory=Cores)

    def open(
        self,
        graph: Path | bytes,
        path: Path,
        *,
        weights: Weights | None = None,
        threads: int | None = None,
        captures: bool = False,
    ) -> OpenedSession:
        """Load a graph.

        Args:
            graph: the ONNX file, or its contents.
            path: the file to blame.
            weights: what the graph refers to, if it does not hold its own.
            threads: how many threads one run uses on the CPU, if not as many as it may.
            captures: whether runs on CUDA are to be captured as CUDA graphs, if that can be done.

        Raises:
            ModelLoadError: onnxruntime rejects the graph, or CUDA was asked for and does not load.
        """
        if self.choice is not ProviderChoice.CPU:
            opened, reason = _open_on_cuda(graph, path, weights, captures)
            if opened is not None:
                return opened
            if self.choice is ProviderChoice.CUDA:
                raise ModelLoadError(
                    "the provider cuda was asked for, but CUDA does not load here: it needs an NVIDIA GPU with its "
                    "driver, and onnxruntime-gpu with the CUDA libraries (pip install 'elman[server,cuda]'); "
                    f"--provider auto falls back to the CPU{reason}"
                )
        options = _options(threads or self.threads, weights, self.cores)
        return OpenedSession(_open(graph, path, [Provider.CPU], options), Provider.CPU, cores=self.cores)


def _open_on_cuda(
    graph: Path | bytes, path: Path, weights: Weights | None, captures: bool
) -> tuple[OpenedSession | None, str]:
    """A session on CUDA, or none and what onnxruntime says of it."""
    if _ONNXRUNTIME_NAMES[Provider.CUDA] not in onnxruntime.get_available_providers():
        return None, " (this onnxruntime is built without CUDA)"
    options = _options(1, weights, Cores())
    options.log_severity_level = _FATAL  # That it does not load is an answer here, not an error.
    onnxruntime.set_default_logger_severity(_FATAL)
    reason = ""
    try:
        # A graph that cannot be captured, because a node of it has to run on the host, runs without.
        for captured in (True, False) if captures else (False,):
            try:
                session = _open(graph, path, [Provider.CUDA, Provider.CPU], options, captures=captured)
            except ModelLoadError as error:
                reason = f" ({error.__cause__})"
                continue
            # onnxruntime drops a provider whose libraries are missing, and goes on with the rest.
            if _ONNXRUNTIME_NAMES[Provider.CUDA] in session.get_providers():
                return OpenedSession(session, Provider.CUDA, captured), ""
    finally:
        onnxruntime.set_default_logger_severity(_WARNING)
    return None, reason


def _options(threads: int, weights: Weights | None, cores: Cores) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    if weights is not None:
        weights.give_to(options)
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    if threads > 1 and cores.of_others:
        options.add_session_config_entry("session.intra_op_thread_affinities", cores.of_others)
    # Within a run threads spin while they wait for each other, not for long: waking one is dear on a virtual machine,
    # and one that spins takes the core from whoever the others wait for. Between runs they sleep, or they would take
    # the cores from the side that talks to the clients.
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(_SPIN_MICROSECONDS))
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def _open(
    graph: Path | bytes,
    path: Path,
    providers: list[Provider],
    options: onnxruntime.SessionOptions,
    *,
    captures: bool = False,
) -> onnxruntime.InferenceSession:
    settings = {Provider.CPU: {}, Provider.CUDA: {"enable_cuda_graph": "1"} if captures else {}}
    named = [(_ONNXRUNTIME_NAMES[provider], settings[provider]) for provider in providers]
    try:
        # Without its fallback, which prints to standard output and hides why a provider failed.
        return onnxruntime.InferenceSession(graph, options, providers=named, enable_fallback=0)
    except Exception as error:  # onnxruntime's exceptions share no base class of their own.
        raise ModelLoadError(f"{path}: onnxruntime rejects the graph: {error}") from error
