"""A request to continue a prompt or a session."""

from __future__ import annotations

from dataclasses import dataclass, field

from elman_server.inference.generation_options import GenerationOptions
from elman_server.inference.input_forms import Input
from elman_server.sessions import Target


@dataclass(frozen=True)
class GenerationRequest:
    """A request to continue a prompt or a session.

    Attributes:
        model: name of the model; "" for the only one that suits.
        prompt: what to continue; None for nothing.
        source: what the encoder reads; None for nothing.
        options: how tokens are chosen, when it ends, how tokens are delivered.
        seed: of the random numbers; None for a random one, or in a session for that of the session.
        session: the session to continue; None for none.
        received_token_count: how many tokens of the call the caller has from an earlier attempt.
        bypass_prefix_cache: whether the prompt is read in full.
    """

    model: str = ""
    prompt: Input | None = None
    source: Input | None = None
    options: GenerationOptions = field(default_factory=GenerationOptions)
    seed: int | None = None
    session: Target | None = None
    received_token_count: int = 0
    bypass_prefix_cache: bool = False
