"""Constrained decoding: an output matches an expression as a whole, whatever the model prefers.

    Grammars (of a vocabulary) -> compile -> Grammar -> start -> Matcher -> allowed_tokens -> accept the chosen token

Based on llguidance (https://github.com/guidance-ai/llguidance): derivatives of regular expressions for the lexemes, an
Earley parser above them, and a walk over a trie of all tokens for what may come next. A token is allowed if its bytes
continue a match, however the rest will be split into tokens; no token is ever forced.

    constraint   what a caller writes: a kind and an expression
    syntaxes     the kinds: each one's checks, its translation for llguidance, and the position of errors
    sandbox      compilation in a process with limited resources
    grammars     compilation and cache
    matching     the progress of an output towards a match
    vocabulary   a vocabulary as llguidance reads it
"""

from elman_server.decoding.constraints.constraint import MAX_CHARACTERS, Constraint, ConstraintKind
from elman_server.decoding.constraints.grammars import Grammars
from elman_server.decoding.constraints.matching import Grammar, Matcher, allowed_tokens

__all__ = [
    "MAX_CHARACTERS",
    "Constraint",
    "ConstraintKind",
    "Grammar",
    "Grammars",
    "Matcher",
    "allowed_tokens",
]
