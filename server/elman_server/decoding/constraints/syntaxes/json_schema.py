"""JSON schemas, draft 4 to 2020-12, as far as llguidance enforces them
(https://github.com/guidance-ai/llguidance/blob/main/docs/json_schema.md).

Any other keyword is refused unless it only annotates or begins with "x-". Members are generated in the order of the
schema. White space is limited unless the schema chooses otherwise: {"x-guidance": {"whitespace_flexible": true}} allows
any, false allows none.
"""

from __future__ import annotations

import re

from elman_server.decoding.constraints.syntaxes.messages import reason_of
from elman_server.decoding.constraints.syntaxes.schema_check import check_schema, key_position
from elman_server.decoding.constraints.syntaxes.schema_parts import KEYWORDS
from elman_server.decoding.constraints.syntaxes.schema_rewriting import rewritten
from elman_server.decoding.constraints.syntaxes.syntax import Syntax, to_grammar
from elman_server.errors import ConstraintError


def _grammar(text: str) -> str:
    return to_grammar("start: @schema", {"name": "schema", "json_schema": rewritten(check_schema(text))})


def _error(text: str, message: str) -> ConstraintError:
    reason = reason_of(message)
    if "in regex" in message or "regex parse" in message:
        reason = f"in a pattern: {reason}"
    return ConstraintError(reason, _keyword_position(text, reason))


def _keyword_position(schema: str, reason: str) -> int | None:
    """Return the position of the first keyword in a reason that occurs exactly once in the schema."""
    keywords = [word for word in re.findall(r"\$?\w+", reason) if word in KEYWORDS]
    found = [position for word in keywords if (position := key_position(schema, word)) is not None]
    return found[0] if found else None


SYNTAX = Syntax("JSON schema", _grammar, _error)
