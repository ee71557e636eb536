"""Encoding the sources of sequences that are admitted."""

from __future__ import annotations

import structlog

from elman_server.engine import Encoded, Engine
from elman_server.errors import EngineError
from elman_server.scheduling.interface import INTERNAL
from elman_server.scheduling.isolation import run_each, try_each
from elman_server.scheduling.sequence import Sequence, Source

_log = structlog.get_logger(__name__)


def encode_sources(model: str, engine: Engine, sequences: list[Sequence]) -> None:
    """Encode the sources that are not encoded yet. A source that the encoder fails on keeps the failure.

    Args:
        model: the model's name, for the log.
        engine: runs the encoder.
        sequences: any; several may have the same source.
    """
    unread = {id(source): source for one in sequences if (source := one.source) and source.encoded is None}
    sources = list(unread.values())
    if not sources:
        return
    try:
        encoded = _encode(model, engine, sources)
    except Exception:  # A defect: these sequences have no row yet, where `RowBatch.fail` would find them.
        _log.exception("encoding failed", model=model, sources=len(sources))
        alone = sources if len(sources) > 1 else []
        encoded, _ = try_each(model, alone, lambda source: engine.encode([source.values])[0])
        for source in sources:
            source.failure = INTERNAL  # Where there is no result, this is why.
    for source in sources:
        source.encoded = encoded.get(source)


def _encode(model: str, engine: Engine, sources: list[Source]) -> dict[Source, Encoded]:
    try:
        return dict(zip(sources, engine.encode([source.values for source in sources]), strict=True))
    except EngineError as error:
        alone = sources if len(sources) > 1 else []
        encoded, _ = run_each(alone, lambda source: engine.encode([source.values])[0])
        failed = len(sources) - len(encoded)
        _log.warning("the encoder failed", model=model, error=str(error), failed=failed)
        return encoded
