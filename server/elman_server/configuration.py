"""The parameters of each part of the server, derived from the settings."""

from __future__ import annotations

from dataclasses import replace

from elman_server.engine import core_count
from elman_server.inference.limits import Limits
from elman_server.scheduling import SchedulingPolicy
from elman_server.sessions import SessionOptions
from elman_server.settings import Settings

# A message costs about 60 us in the server and 40 us in its client: these take 3 % of the cores, or 5 % where the
# clients run on the same machine. Where delivery is slower,
# `SchedulingPolicy.emission_share` limits it.
_MESSAGES_PER_CORE = 500  # per second
_MIB = 2**20  # bytes


def thread_count(settings: Settings) -> int:
    """CPU threads that one step of a model uses."""
    return settings.threads or core_count()


def message_rate(settings: Settings) -> float:
    """Messages per second to all streams of a model together, at most and approximately."""
    return settings.message_rate or core_count() * _MESSAGES_PER_CORE


def scheduling_policy(settings: Settings) -> SchedulingPolicy:
    """The thresholds of scheduling."""
    policy = SchedulingPolicy(
        run_seconds=settings.chunk_ms / 1000,
        flush_interval_seconds=settings.gather_ms / 1000,
        messages_per_second=message_rate(settings),
    )
    # A rate that the operator chose is kept, however long delivery takes.
    return replace(policy, emission_share=0.0) if settings.message_rate else policy


def request_limits(settings: Settings) -> Limits:
    """What one request may ask for."""
    return Limits(
        max_tokens=settings.max_tokens_limit,
        input_tokens=settings.input_limit,
        message_bytes=settings.message_limit,
    )


def session_options(settings: Settings) -> SessionOptions:
    """How sessions are kept."""
    return SessionOptions(
        memory_bytes=int(settings.session_memory * _MIB),
        time_to_live=settings.session_ttl,
        per_caller=settings.sessions_per_caller,
        snapshot_steps=settings.snapshot_steps,
    )


def prefix_bytes(settings: Settings) -> int:
    """Bytes that the states behind prompts and inputs may take; 0: none are kept."""
    return settings.prefix_cache * _MIB
