"""Where a model runs, and onnxruntime sessions there. CUDA is used where it loads; that it does not is never silent."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import onnx
import onnxruntime
import structlog

from elman_server.engine.threads import Cores
from elman_server.engine.weights import Weights
from elman_server.errors import ModelLoadError
from elman_server.settings import ProviderChoice

_FATAL = 4
# What goes wrong is raised, and logged by elman; onnxruntime would print it, in colours, once for every graph.
onnxruntime.set_default_logger_severity(_FATAL)


_log = structlog.get_logger(__name__)


class Provider(StrEnum):
    """Where a session runs."""

    CPU = "cpu"
    CUDA = "cuda"


_ONNXRUNTIME_NAMES = {Provider.CPU: "CPUExecutionProvider", Provider.CUDA: "CUDAExecutionProvider"}


@dataclass(frozen=True)
class OpenedSession:
    """A session and where it runs.

    Attributes:
        session: the session.
        provider: where it runs.
        captures: whether its runs are captured as CUDA graphs.
        cores: the cores that the threads of its runs stay on.
    """

    session: onnxruntime.InferenceSession
    provider: Provider
    captures: bool = False
    cores: Cores = field(default_factory=Cores)


@dataclass(frozen=True)
class Opener:
    """Opens sessions.

    Attributes:
        choice: where graphs run; AUTO is CUDA if it loads, else the CPU.
        threads: the largest number of threads of a run on the CPU.
        cores: the cores that these stay on.
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
            path: the file to name in errors.
            weights: what the graph refers to, if it does not contain its own.
            threads: the number of threads of a run on the CPU; None: the largest.
            captures: whether runs on CUDA are captured as CUDA graphs where that is possible.

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
        options = _options(threads or self.threads, weights, self)
        return OpenedSession(_open(graph, path, [Provider.CPU], options), Provider.CPU, cores=self.cores)

    def open_on_cpu(self, opened: OpenedSession, path: Path) -> onnxruntime.InferenceSession | None:
        """A session on the CPU for trial runs: on CUDA equal runs need not give equal bits.

        Args:
            opened: a session on the graph, which is returned if it is one.
            path: the file of the graph.

        Returns:
            The session; None if the graph runs on CUDA only.
        """
        if opened.provider is Provider.CPU:
            return opened.session
        try:
            return _open(path, path, [Provider.CPU], _options(self.threads, None, self))
        except ModelLoadError as error:
            _log.warning("not tried on the cpu", graph=path.name, reason=str(error.__cause__))
            return None


def open_plain(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """A session on the CPU that runs the nodes as they are. What onnxruntime raises is passed on."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = _FATAL
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=[_ONNXRUNTIME_NAMES[Provider.CPU]]
    )


def _open_on_cuda(
    graph: Path | bytes, path: Path, weights: Weights | None, captures: bool
) -> tuple[OpenedSession | None, str]:
    """Returns a session on CUDA, or None and why there is none."""
    if _ONNXRUNTIME_NAMES[Provider.CUDA] not in onnxruntime.get_available_providers():
        return None, " (this onnxruntime is built without CUDA)"
    options = _options(1, weights)
    reason = ""
    # A graph with a node that runs on the host cannot be captured; it runs uncaptured.
    for captured in (True, False) if captures else (False,):
        try:
            session = _open(graph, path, [Provider.CUDA, Provider.CPU], options, captures=captured)
        except ModelLoadError as error:
            reason = f" ({error.__cause__})"
            continue
        # onnxruntime drops a provider whose libraries are missing, and goes on with the rest.
        if _ONNXRUNTIME_NAMES[Provider.CUDA] in session.get_providers():
            return OpenedSession(session, Provider.CUDA, captured), ""
    return None, reason


def _options(threads: int, weights: Weights | None, opener: Opener | None = None) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL
    if weights is not None:
        weights.give_to(options)
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Between runs threads sleep: a spinning thread would take a core from the event loop.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if opener is not None and threads > 1 and opener.cores.thread_affinities:
        options.add_session_config_entry("session.intra_op_thread_affinities", opener.cores.thread_affinities)
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
        # onnxruntime's own fallback prints to standard output and hides why a provider failed.
        return onnxruntime.InferenceSession(graph, options, providers=named, enable_fallback=0)
    except Exception as error:  # onnxruntime's exceptions share no base class of their own.
        raise ModelLoadError(f"{path}: onnxruntime rejects the graph: {error}") from error
