"""The weights of a model, in one file that the onnxruntime sessions of all its graphs map.

A session that reads a graph with its weights inside holds three copies of them, and a model has a graph for each number
of steps. Weights that are packed for a matrix product would be kept by each session, too: a stream that changes from
one graph to another would then find none of them in the caches. So onnxruntime writes its packed weights to a file
once; each session that is opened later packs what it reads, and drops it for the contents of the file where both are
equal.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
import onnxruntime
import structlog
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

_LEAST = 1024  # bytes; smaller constants stay in the graph
_FOLDERS, _UNNAMED = "elman-weights-", "elman-new-"
_FILE = "weights"
_PACKED_GRAPH, _PACKED = "packed.onnx", "packed"
_ALIGNMENT = 64  # bytes; matrix products load whole cache lines, and crash the process where one is not aligned
_ERROR = 3  # onnxruntime's log level; it warns that the file it writes is for this machine only

_log = structlog.get_logger(__name__)


class Weights:
    """The weights of a graph, moved into a file to which the graph then refers. They stay in the graph where no file
    can be written.

    Args:
        path: the file of the graph, for the log.
        model: the graph, which is changed.
        steps: an unrolled graph with the same weights, by which they are packed for the CPU; None: they are not packed.
    """

    def __init__(self, path: Path, model: onnx.ModelProto, steps: onnx.ModelProto | None) -> None:
        self._folder: _Folder | None = None
        try:
            folder = _Folder()
            references = _write(model, folder.path, _pack(path, steps, folder.path) if steps is not None else {})
        except OSError as error:
            what = "weights not shared: no file can be written, so every graph keeps its own"
            _log.warning(what, graph=str(path), reason=str(error))
            return
        for weight, reference in references:
            weight.CopyFrom(reference)
        self._folder = folder

    def give_to(self, options: onnxruntime.SessionOptions) -> None:
        """Let a session map the file. The session must be opened while this object lives."""
        if self._folder is not None:
            folder = str(self._folder.path)
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)


@dataclass(frozen=True)
class _Pack:
    """A weight packed for a kernel.

    Attributes:
        kernel: the key of the kernel in onnxruntime's files.
        parts: the packed buffers.
    """

    kernel: str
    parts: list[NDArray[np.uint8]]


def _pack(path: Path, steps: onnx.ModelProto, folder: Path) -> dict[str, list[_Pack]]:
    """Let onnxruntime pack the weights of a graph; returns the packs by the name of the weight."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERROR
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", _PACKED)
    options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", str(_LEAST))
    options.add_session_config_entry("session.save_external_prepacked_constant_initializers", "1")
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        graph = Path(scratch) / _PACKED_GRAPH
        options.optimized_model_filepath = str(graph)
        try:
            onnxruntime.InferenceSession(steps.SerializeToString(), options, providers=["CPUExecutionProvider"])
            return _packs(onnx.load(graph, load_external_data=False), graph.with_name(_PACKED))
        except Exception as error:  # onnxruntime's exceptions share no base class of their own.
            _log.warning("weights not packed: every graph packs its own", graph=str(path), reason=str(error))
            return {}


def _packs(written: onnx.ModelProto, file: Path) -> dict[str, list[_Pack]]:
    """The packs by the name of the weight. They are mapped, and stay valid when the file is removed."""
    packs: dict[str, list[_Pack]] = {}
    for entry in written.graph.initializer:
        for item in entry.external_data:
            if item.key.startswith("prepacked"):  # kernel|offset;length;checksum|...
                kernel, *parts = item.value.split("|")
                contents = np.memmap(file, np.uint8, "r")
                places = [tuple(map(int, part.split(";")[:2])) for part in parts]
                pack = _Pack(kernel, [contents[offset : offset + length] for offset, length in places])
                packs.setdefault(entry.name, []).append(pack)
    return packs


def _write(
    model: onnx.ModelProto, folder: Path, packs: dict[str, list[_Pack]]
) -> list[tuple[TensorProto, TensorProto]]:
    """Write the file; returns each weight in the graph with the reference that replaces it."""
    references = []
    with (folder / _FILE).open("wb") as file:
        for weight in model.graph.initializer:
            value = _content(weight)
            if value.nbytes < _LEAST:
                continue
            reference = TensorProto(name=weight.name, data_type=weight.data_type, dims=weight.dims)
            reference.data_location = TensorProto.EXTERNAL
            reference.external_data.add(key="location", value=_FILE)
            reference.external_data.add(key="offset", value=str(_add(file, value)))
            reference.external_data.add(key="length", value=str(value.nbytes))
            for number, pack in enumerate(packs.get(weight.name, [])):
                parts = [f"{_add(file, part)};{part.nbytes};0" for part in pack.parts]
                reference.external_data.add(key=f"prepacked_{number}", value="|".join([pack.kernel, *parts]))
            references.append((weight, reference))
    return references


def _content(weight: TensorProto) -> NDArray[np.uint8]:
    """The bytes of a weight as a file holds them; none of strings, which no file holds."""
    if weight.data_type == TensorProto.STRING:
        return np.empty(0, np.uint8)
    packed = weight if weight.HasField("raw_data") else numpy_helper.from_array(numpy_helper.to_array(weight))
    return np.frombuffer(packed.raw_data, np.uint8)


def _add(file: BinaryIO, content: NDArray[Any]) -> int:
    """Append an aligned array; returns its offset."""
    offset = file.seek(-(-file.tell() // _ALIGNMENT) * _ALIGNMENT)
    file.write(np.ascontiguousarray(content).tobytes())
    return offset


class _Folder:
    """A temporary folder that lives as long as this object, and that it locks. The folder of a process that was killed
    is not locked any more, and is removed when the next one is made. tmpfiles.d(5) leaves locked folders alone.

    Attributes:
        path: the folder.
    """

    def __init__(self) -> None:
        _remove_left()
        unnamed = Path(tempfile.mkdtemp(prefix=_UNNAMED))
        self.path = unnamed.with_name(_FOLDERS + unnamed.name.removeprefix(_UNNAMED))
        # Locked before it has its name, so that no other process takes it for an abandoned one.
        lock = _lock(unnamed)
        unnamed.rename(self.path)
        weakref.finalize(self, _remove, self.path, lock)


def _lock(folder: Path) -> int:
    """Lock a folder; returns the file descriptor that holds the lock.

    Raises:
        OSError: another process has locked it, or owns it.
    """
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise
    return lock


def _remove(folder: Path, lock: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    os.close(lock)


def _remove_left() -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{_FOLDERS}*"):
        with contextlib.suppress(OSError):
            _remove(folder, _lock(folder))
