"""The options that change logits before a token is chosen.

Rows without any of them choose inside the graph. The order of application is that of transformers
(`GenerationMixin._get_logits_processor` in 5.23); the penalties that it lacks stand where vLLM applies them:

1. logit bias: added;
2. repetition penalty (CTRL, Keskar et al. 2019): the scores of tokens in the prompt or the output are divided by it
   where they are positive and multiplied by it where they are negative;
3. frequency penalty: subtracted once for each time that the output holds the token;
4. presence penalty: subtracted once if the output holds the token;
5. minimum length: the end token is forbidden until it is reached;
6. grammar: only what it allows is left. If all of that was forbidden before, all of it becomes equally probable: a
   grammar that can only end does so before the minimum length;
7. forced tokens: nothing else is left, whatever 1 to 5 say. Unlike in transformers, a grammar that does not allow the
   token is not overruled: nothing is left then;
8. forbidden tokens, and the tokens that no row may choose;
9. to 13. temperature, top-k, top-p, min-p and the draw (`drawing`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Shaping:
    """How the logits of a generation are changed.

    Attributes:
        logit_bias: what is added to the scores of tokens, by token.
        repetition_penalty: above 0; above 1 it makes the tokens of the prompt and of the output less probable.
        frequency_penalty: subtracted from the score of a token for each time that it has been generated.
        presence_penalty: subtracted from the score of a token that has been generated.
        forbidden_tokens: tokens that are never chosen.
        min_tokens: number of generated tokens before which the end token is forbidden.
        forced_tokens: the tokens that the output begins with.
    """

    logit_bias: Mapping[int, float] = field(default_factory=dict)
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    forbidden_tokens: tuple[int, ...] = ()
    min_tokens: int = 0
    forced_tokens: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        assert self.repetition_penalty > 0
