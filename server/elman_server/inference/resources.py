"""What the use cases of a server share."""

from __future__ import annotations

from dataclasses import dataclass

from elman_server.inference.grammars import GrammarCompiler
from elman_server.inference.limits import Limits
from elman_server.inference.prefix_cache import PrefixCache
from elman_server.inference.registry import ModelRegistry
from elman_server.sessions import Sessions


@dataclass(frozen=True)
class Resources:
    """What the use cases of a server share.

    Attributes:
        models: the models that the server holds.
        sessions: the sessions that calls may continue.
        prefixes: states behind prompts that have been read before.
        grammars: compiles constraints.
        limits: what one request may ask for.
    """

    models: ModelRegistry
    sessions: Sessions
    prefixes: PrefixCache
    grammars: GrammarCompiler
    limits: Limits
