"""What callers write, as llguidance reads it; and what llguidance says of it, in words of the caller.

Every expression becomes a grammar that forces nothing: which tokens spell a text is the model's choice.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from enum import Enum

from elman_server.decoding.schemas import KEYWORDS, checked_schema, key_position
from elman_server.errors import ConstraintError, shortened

LONGEST = 100_000  # characters

_OPTIONS = '\n%llguidance {"no_forcing": true}\n'  # The last line, so that positions stay what they are.

# What is no part of a Lark grammar's own syntax: strings, expressions, comments. From every quote and slash that closes
# nothing a search would look through all the rest, so the first of them ends it.
_LARK = re.compile(
    r'(?P<text>"(?:\\.|[^"\\\n])*"|/(?:\\.|[^/\\])+/|(?:#|//)[^\n]*)'
    r"|(?P<json>%json\s*)"
    r"|(?P<refused>%llguidance|<[^<>\s]+>|\b(?:stop|temperature|max_tokens)\s*=)"
    r"|(?P<open>[\"/])"
)
_LARK_PLACE = re.compile(r"(?:at )?(?P<line>\d+)\((?P<column>\d+)\): ")
_DRAWN = re.compile(r"(?P<number>\s*\d+: |    )(?P<line>.*)")
_ASSERTION = re.compile(r"lookarounds not supported yet; (?P<name>Start|End|Word)\w* in regex")
_ASSERTIONS = {
    "Start": (("^", r"\A"), r"^ and \A stand at the beginning only"),
    "End": (("$", r"\z"), r"$ and \z stand at the end only"),
    "Word": ((r"\b", r"\B"), r"\b and \B are not supported"),
}
_ATOM = re.compile(r"\\.|\[(?:\\.|[^]\\])+\]?|.", re.DOTALL)  # A class that does not end is one to the end.
_SLASH = re.compile(r"\\.|/", re.DOTALL)
_TOO_COMPLEX = re.compile(r"too (big|large|many|deeply)|fuel|determine|increase limits", re.IGNORECASE)
_REASONS = [
    (re.compile(said), meant)
    for said, meant in (
        ("^failed to compile JSON schema: ", ""),
        (" at line [0-9]+ column [0-9]+$", ""),
        (r" \(at .*", ""),
        ("^NoExtensionBias$", "nothing can match it"),
        ("^lexer error$", "nothing in Lark begins so"),
        ("^recursion limit exceeded$", "nested too deeply"),
        ("Regex is empty: .*", "no string fits the patterns"),
        ("Unable to determine if regex is empty: .*", "too complex: whether any string fits the patterns"),
        (
            "^(fuel exhausted|lexer precomputation failed|initial lexer configuration).*",
            "too complex: too many ways to go",
        ),
        ("^oneOf constraints are not supported.*", "oneOf is supported only where no two alternatives can overlap"),
    )
]


class ConstraintKind(Enum):
    r"""How a constraint is written.

    REGEX: a regular expression in the syntax of the Rust crate `regex` (https://docs.rs/regex/latest/regex/#syntax),
        which the output matches from beginning to end: neither look-around nor back-references; ^ and $ at the ends
        only. What differs from Python without an error: [a&&b], [a--b] and [a~~b] are operations on sets, a++ is (a+)+,
        and \w takes in the marks that Unicode counts to words.
    JSON_SCHEMA: a JSON schema, draft 4 to 2020-12, as far as llguidance enforces it
        (https://github.com/guidance-ai/llguidance/blob/main/docs/json_schema.md); any other keyword is refused, unless
        it only annotates or begins with "x-". Members come in the order of the schema. White space is free, or absent
        with {"x-guidance": {"whitespace_flexible": false}}.
    LARK: a grammar in llguidance's form of Lark
        (https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md), without what is not about text:
        %llguidance, references to tokens, the attributes stop, temperature and max_tokens.
    """

    REGEX = "regular expression"
    JSON_SCHEMA = "JSON schema"
    LARK = "Lark grammar"


@dataclass(frozen=True)
class Constraint:
    """What an output has to match as a whole."""

    kind: ConstraintKind
    text: str


def grammar_of(constraint: Constraint) -> str:
    """The grammar that llguidance compiles.

    Raises:
        ConstraintError: the expression cannot be read, is too long, or asks for what is not supported.
    """
    text = constraint.text
    if len(text) > LONGEST:
        raise ConstraintError(f"a {constraint.kind.value} has at most {LONGEST:,} characters, not {len(text):,}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConstraintError("half of a surrogate pair, which is no character", error.start) from None
    match constraint.kind:
        case ConstraintKind.REGEX:
            return _grammar(f"start: /{_escaped(text) or '()'}/")
        case ConstraintKind.LARK:
            _check_lark(text)
            return _grammar(text)
        case ConstraintKind.JSON_SCHEMA:
            return _grammar("start: @schema", {"name": "schema", "json_schema": checked_schema(text)})


def explained(constraint: Constraint, complaint: str) -> ConstraintError:
    """What llguidance has to say of an expression, for who wrote it."""
    text = constraint.text
    place = _LARK_PLACE.match(complaint)
    reason = _reason(complaint[place.end() :] if place else complaint)
    match constraint.kind:
        case ConstraintKind.REGEX:
            return ConstraintError(reason, _regex_position(text, complaint))
        case ConstraintKind.LARK:
            return ConstraintError(reason, _lark_position(text, place) if place else None)
        case ConstraintKind.JSON_SCHEMA:
            if "in regex" in complaint or "regex parse" in complaint:
                reason = f"in a pattern: {reason}"
            return ConstraintError(reason, _keyword_position(text, reason))


def _grammar(lark: str, *others: dict[str, object]) -> str:
    return json.dumps({"grammars": [{"lark_grammar": lark + _OPTIONS}, *others]})


def _escaped(expression: str) -> str:
    """A regular expression as it stands between the slashes of a Lark grammar."""
    readable = re.match(r"(?:[^\\]|\\.)*", expression)
    assert readable is not None
    if readable.end() < len(expression):
        raise ConstraintError("a backslash that escapes nothing; for a line break write \\n", readable.end())
    return _SLASH.sub(lambda found: "\\/" if found[0] == "/" else found[0], expression)


def _check_lark(grammar: str) -> None:
    position = 0
    while found := _LARK.search(grammar, position):
        position = found.end()
        if found["refused"]:
            raise ConstraintError(f"{shortened(found['refused'])!r} is not supported here", found.start())
        if found["open"]:
            kind = "a string" if found["open"] == '"' else "a regular expression"
            raise ConstraintError(f"{kind} that does not end", found.start())
        if found["json"]:
            position = _check_inline_schema(grammar, position)


def _check_inline_schema(grammar: str, start: int) -> int:
    """The end of a JSON schema inside a grammar."""
    try:
        _, end = json.JSONDecoder().raw_decode(grammar, start)
    except json.JSONDecodeError as error:
        raise ConstraintError(f"not JSON: {error.msg}", error.pos) from None
    except RecursionError:
        raise ConstraintError("nested too deeply", start) from None
    try:
        checked_schema(grammar[start:end])
    except ConstraintError as error:
        raise ConstraintError(error.problem, None if error.position is None else start + error.position) from None
    return end


def _reason(complaint: str) -> str:
    if problem := _regex_problem(complaint):
        return problem[1]
    if assertion := _ASSERTION.search(complaint):
        return _ASSERTIONS[assertion["name"]][1]
    reason = complaint.partition("\n")[0]
    for said, meant in _REASONS:
        reason = said.sub(meant, reason)
    if _TOO_COMPLEX.search(reason) and not reason.startswith("too complex"):
        reason = f"too complex: {reason}"
    return shortened(reason, longest=200)


def _regex_problem(complaint: str) -> tuple[str, str] | None:
    """The drawing of a regular expression, and what is wrong with it."""
    drawing, found, rest = complaint.partition("regex parse error:\n")[2].partition("\nerror: ")
    return (drawing, rest.partition("\n")[0]) if found else None


def _regex_position(expression: str, complaint: str) -> int | None:
    if problem := _regex_problem(complaint):
        position = _drawn_position(problem[0])
        for found in _SLASH.finditer(expression):
            if found[0] == "/" and position is not None and found.start() < position:
                position -= 1  # There is a backslash before it that is not the caller's.
        return position
    if assertion := _ASSERTION.search(complaint):
        return _assertion_position(expression, assertion["name"])
    return None


def _drawn_position(drawing: str) -> int | None:
    """Where the carets are: under a line that is indented, or under one of several that are numbered."""
    start = following = indent = 0
    position = None
    for line in drawing.split("\n"):
        if following and line.strip() and not line.strip(" ^"):
            # Of two places the one further on: where it is too late.
            position = start + len(line.rstrip(" ").rstrip("^")) - indent
        elif drawn := _DRAWN.match(line):
            start, indent = following, len(drawn["number"])
            following += len(drawn["line"]) + 1
    return position


def _assertion_position(expression: str, name: str) -> int | None:
    """Where an assertion stands that may not stand there, if there is one such place."""
    written = _ASSERTIONS[name][0]
    found = [atom for atom in _ATOM.finditer(expression) if atom[0] in written]
    fitting = {"Start": 0, "End": len(expression)}.get(name)
    wrong = [atom.start() for atom in found if fitting not in atom.span()]
    return wrong[0] if len(wrong) == 1 else None


def _lark_position(grammar: str, place: re.Match[str]) -> int:
    """The character at a line and a column, which counts bytes; both from 1."""
    lines = grammar.split("\n")
    line = int(place["line"]) - 1
    if line >= len(lines):
        return len(grammar)
    before = lines[line].encode()[: int(place["column"]) - 1].decode(errors="ignore")
    return sum(len(whole) + 1 for whole in lines[:line]) + len(before)


def _keyword_position(schema: str, reason: str) -> int | None:
    """Where the keyword is that a complaint names, if the schema has it once."""
    named = [word for word in re.findall(r"\$?\w+", reason) if word in KEYWORDS]
    found = [position for word in named if (position := key_position(schema, word)) is not None]
    return found[0] if found else None
