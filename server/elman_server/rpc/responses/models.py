"""What a server says about its models."""

from __future__ import annotations

from elman_protos import v1
from elman_server.inference.model import ServedModel
from elman_server.inference.prefix_cache import PrefixCache


def model_message(model: ServedModel, prefixes: PrefixCache) -> v1.Model:
    """Return a model with its load, and with what the prefix cache has saved it."""
    saved, scheduler = prefixes.statistics(model.bundle.digest), model.scheduler
    return v1.Model(
        spec=model.bundle.spec,
        digest=model.bundle.digest,
        provider=model.provider,
        slot_count=scheduler.slot_count,
        running_count=scheduler.running_count,
        waiting_count=scheduler.waiting_count,
        waiting_limit=scheduler.waiting_limit,
        prefix_cache=v1.PrefixCacheStatistics(
            lookup_count=saved.lookups, hit_count=saved.hits, saved_step_count=saved.saved_steps
        ),
    )
