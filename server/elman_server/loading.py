"""Loading models: bundles are found and checked, their graphs opened and calibrated, their schedulers made."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import structlog

from elman_bundle import MANIFEST, Bundle, BundleError, load_bundle
from elman_bundle.bundle_folder import resolve_path
from elman_bundle.scores import ONE_LABEL
from elman_protos import v1
from elman_server.configuration import scheduling_policy, thread_count
from elman_server.engine import DEFAULT_OUTPUTS, Cores, OnnxEngine, OnnxTreeEngine, Opener, autotune
from elman_server.engine.foreign_graphs import check_graphs
from elman_server.errors import EngineError, ModelLoadError
from elman_server.event_loop import ServerEventLoop
from elman_server.inference.delivery import deliver_into
from elman_server.inference.model import ServedModel
from elman_server.scheduling import RowBatch, RunningBatch, Scheduler, SchedulingPolicy, TreeBatch
from elman_server.settings import Settings

_FIRST_CORE = secrets.randbelow(2**16)  # Several servers on one machine should not all start with the same core.

_log = structlog.get_logger(__name__)


def find_bundles(paths: Iterable[Path]) -> list[Bundle]:
    """Load bundles: each path is one, or a folder of some.

    Raises:
        BundleError: a path holds none, one is damaged, or two have the same name.
    """
    bundles: dict[str, Bundle] = {}
    for path in dict.fromkeys(map(resolve_path, paths)):
        folders = [path]
        if path.is_dir() and not (path / MANIFEST).exists():
            folders = sorted(found.parent for found in path.glob(f"*/{MANIFEST}")) or folders
        for folder in folders:
            bundle = load_bundle(folder)
            if bundle.name in bundles:
                raise BundleError(f"{folder} and {bundles[bundle.name].path} both hold a model named {bundle.name!r}")
            bundles[bundle.name] = bundle
    return list(bundles.values())


def serve_bundle(
    bundle: Bundle,
    settings: Settings,
    loop: ServerEventLoop,
    number: int = 0,
    policy: SchedulingPolicy | None = None,
) -> ServedModel:
    """Load a bundle and warm it up.

    Args:
        bundle: the model.
        settings: how to serve it.
        loop: the event loop of the server.
        number: how many models are loaded already.
        policy: the thresholds; those of the settings if None.

    Raises:
        ModelLoadError: it cannot be served here.
    """
    _check_servable(bundle)
    policy, threads = policy or scheduling_policy(settings), thread_count(settings)
    check_graphs(bundle, policy.engine.node_limit)
    pinned = Cores.all(threads, _FIRST_CORE + number) if policy.engine.pin_threads else Cores()
    opener = Opener(settings.provider, threads, pinned)
    load = _load_trees if bundle.spec.step.HasField("tree") else _load_rows
    try:
        batch, provider = load(bundle, settings.slots, policy, opener)
    except EngineError as error:
        raise ModelLoadError(f"{bundle.graph_path}: the graph loads but does not run: {error}") from error
    scheduler = Scheduler(bundle.name, batch, policy, waiting_limit=settings.waiting_limit, deliver=deliver_into(loop))
    return ServedModel(bundle, scheduler, provider)


def _load_rows(
    bundle: Bundle, slots: int, policy: SchedulingPolicy, opener: Opener
) -> tuple[RunningBatch[Any, Any], str]:
    """Returns the batch of a model that steps through sequences, and where it runs."""
    step = bundle.spec.step
    reads_tokens = bool(step.inputs) and step.inputs[0].HasField("token")
    names = {output.WhichOneof("meaning"): output.name for output in step.outputs}
    text = bundle.vocabulary_spec(step.inputs[0].token.vocabulary) if reads_tokens else None
    engine = OnnxEngine(bundle, capacity=slots, opener=opener, run_seconds=policy.run_seconds, policy=policy.engine)
    autotune(engine)
    _log.info(
        "calibrated",
        model=bundle.name,
        steps_per_run=engine.step_counts_for(False, DEFAULT_OUTPUTS)[-1],
        partitioned=str(engine.partitions),
    )
    rows = RowBatch(
        bundle.name,
        engine,
        policy,
        input_name=step.inputs[0].name if step.inputs else None,
        vocabulary_size=text.size if text is not None and "next_token_logits" in names else 0,
        forbidden_tokens=() if text is None else bundle.ungenerated_ids(text.name),
        label_output=names.get("label_logits"),
    )
    return rows, engine.provider


def _load_trees(
    bundle: Bundle, slots: int, policy: SchedulingPolicy, opener: Opener
) -> tuple[RunningBatch[Any, Any], str]:
    """Returns the batch of a model that steps through trees, and where it runs."""
    engine = OnnxTreeEngine(bundle, capacity=slots, opener=opener, policy=policy.engine)
    engine.warm_up()
    (label_output,) = (output.name for output in bundle.spec.step.outputs if output.HasField("label_logits"))
    return TreeBatch(bundle.name, engine, policy, label_output=label_output), engine.provider


def _check_servable(bundle: Bundle) -> None:
    """Refuse what no call of this server could use.

    Raises:
        ModelLoadError: says what it is.
    """
    manifest, step = bundle.path / MANIFEST, bundle.spec.step
    has_encoder = bundle.spec.HasField("encoder")
    if len(step.inputs) > 1:
        raise ModelLoadError(f"{manifest}: this server serves steps with one input, or none where there is an encoder")
    if step.constants and not has_encoder:
        raise ModelLoadError(f"{manifest}: this server serves constants that an encoder gives, and there is none")
    meanings = {output.WhichOneof("meaning") for output in step.outputs}
    generates, labels = "next_token_logits" in meanings, "label_logits" in meanings
    reads_tokens = bool(step.inputs) and step.inputs[0].HasField("token")
    if not reads_tokens and (generates or not labels):
        what = "numbers" if step.inputs else "nothing"
        raise ModelLoadError(f"{manifest}: a step that reads {what} is served if it has labels and generates nothing")
    for vocabulary in bundle.spec.vocabularies:
        if vocabulary.kind == v1.VOCABULARY_KIND_LABELS and vocabulary.size == 1:
            raise ModelLoadError(f"{manifest}: vocabularies[{vocabulary.name}]: {ONE_LABEL}")
    scopes = {output.label_logits.scope for output in step.outputs if output.HasField("label_logits")}
    if not step.inputs and scopes != {v1.LABEL_SCOPE_SEQUENCE}:
        raise ModelLoadError(f"{manifest}: a step that reads nothing has labels for the whole sequence only")
    if has_encoder and step.inputs and (labels or not generates):
        raise ModelLoadError(
            f"{manifest}: a step behind an encoder is served if it generates tokens and has no labels, or if it has "
            "labels and no inputs"
        )
