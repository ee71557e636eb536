"""The folder of a run: what training writes, and what resuming and exporting read.

    config.json         the configuration
    vocabulary.json     the tokens (absent for bytes; tokenizer.json for subwords); a second vocabulary has another
                        such file whose name starts with "source-"
    labels.json         the classes, if there are any
    features.json       the names of the numeric inputs, if there are any
    last.safetensors    everything needed to resume: weights, optimizer, carried state, step
    best.safetensors    the weights with the best validation
    metrics.jsonl       the log, one JSON object a line
    result.json         the final measurements of the kept weights
    loss.png            the loss curve

Every file is replaced completely or not at all, so a killed run leaves a readable folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from elman_bundle import (
    BundleError,
    InputVocabulary,
    LabelVocabulary,
    read_tokens,
    read_vocabulary,
    write_tokens,
    write_vocabulary,
)
from elman_training.atomic_files import replace_file
from elman_training.config import TrainingConfig, parse_config
from elman_training.families import make_network
from elman_training.task import Task
from elman_training.training_error import TrainingError

CONFIG = "config.json"
LABELS = "labels.json"
FEATURES = "features.json"
LAST = "last.safetensors"
BEST = "best.safetensors"
METRICS = "metrics.jsonl"
RESULT = "result.json"
CURVE = "loss.png"
_LONGEST_REASON = 300  # characters


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write tensors, and metadata that JSON can express."""
    plain = {name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}
    # Not save_file, which makes the file readable for its owner alone.
    content = save(plain, {"elman": json.dumps(metadata)})
    replace_file(path, lambda part: part.write_bytes(content))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors and the metadata of `save_tensors`.

    Raises:
        TrainingError: the file does not exist or is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            return tensors, json.loads(file.metadata()["elman"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise TrainingError(f"{path}: cannot be read as a checkpoint: {error}") from error


def start_folder(run: Path, config: TrainingConfig, task: Task) -> None:
    """Create the folder of a new run.

    Raises:
        TrainingError: the folder holds a run already.
    """
    if (run / CONFIG).exists():
        raise TrainingError(
            f"{run}: holds a run already; continue it with --resume {run}, delete it, or choose another --output"
        )
    run.mkdir(parents=True, exist_ok=True)
    for prefix, vocabulary in task.vocabularies.items():
        write_vocabulary(run, vocabulary, prefix)
    for name, entries in ((LABELS, task.labels), (FEATURES, task.features)):
        if entries is not None:
            write_tokens(run / name, entries)
    replace_file(run / CONFIG, lambda part: part.write_text(config.model_dump_json(indent=2) + "\n"))


def load_config(run: Path) -> TrainingConfig:
    """The configuration of a run.

    Raises:
        TrainingError: the folder holds no run, or one that this version cannot read.
    """
    try:
        return parse_config(json.loads((run / CONFIG).read_text(encoding="utf-8")))
    except OSError as error:
        raise TrainingError(f"{run}: holds no run: {CONFIG}: {error.strerror}") from error
    except ValueError as error:
        raise TrainingError(f"{run / CONFIG}: {error}") from error


def load_vocabularies(run: Path, config: TrainingConfig) -> dict[str, InputVocabulary]:
    """The vocabularies of a run, by the prefix of their files' names.

    Raises:
        TrainingError: a file cannot be read, or holds no vocabulary of its kind.
    """
    found: dict[str, InputVocabulary] = {}
    for name, spec in config.vocabularies().items():
        try:
            vocabulary = read_vocabulary(run, spec)
        except BundleError as error:
            raise TrainingError(str(error)) from error
        except ValueError as error:
            raise TrainingError(f"{run / spec.file}: {error}") from error
        assert not isinstance(vocabulary, LabelVocabulary)
        found[name] = vocabulary
    return found


def load_labels(run: Path) -> tuple[str, ...] | None:
    """The classes of a run; None if there are none."""
    return _read_list(run / LABELS)


def load_features(run: Path) -> tuple[str, ...] | None:
    """The names of a run's numeric inputs; None if there are none."""
    return _read_list(run / FEATURES)


def _read_list(path: Path) -> tuple[str, ...] | None:
    """The entries of a list; None if there is no such file.

    Raises:
        TrainingError: it holds no list.
    """
    try:
        return tuple(read_tokens(path)) if path.exists() else None
    except BundleError as error:
        raise TrainingError(str(error)) from error


def load_result(run: Path) -> dict[str, Any] | None:
    """The final measurements of a run; None if it was killed before it wrote them.

    Raises:
        TrainingError: the file is damaged.
    """
    path = run / RESULT
    if not path.exists():
        return None
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        return {key: value if isinstance(value, bool) else float(value) for key, value in result.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise TrainingError(f"{path}: expected a JSON object with the measurements of a run: {error}") from error


def load_best(run: Path) -> nn.Module:
    """The network with the best weights, in evaluation mode.

    Raises:
        TrainingError: the run has kept no weights yet, or a file is missing, damaged or not of the same run.
    """
    config = load_config(run)
    sizes = {name: vocabulary.size for name, vocabulary in load_vocabularies(run, config).items()}
    listed = {"labels": load_labels(run), "features": load_features(run)}
    sizes |= {name: len(entries) for name, entries in listed.items() if entries is not None}
    if not (run / BEST).exists():
        raise TrainingError(f"{run}: has kept no weights yet; train it first")
    tensors, _ = load_tensors(run / BEST)
    try:
        network = make_network(config, sizes)
        network.load_state_dict(tensors)
    except KeyError as error:
        raise TrainingError(f"{run / error.args[0]}.json: is missing; the task {config.task} needs it") from error
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:_LONGEST_REASON]
        raise TrainingError(f"{run / BEST}: does not fit the other files of the run: {reason}") from error
    return network.eval()
