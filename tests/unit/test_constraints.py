"""Constrained output matches its expression by Python's `re` and `jsonschema`, and no expression harms the server."""

from __future__ import annotations

import itertools
import json
import re
import threading
import time
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLParserLimits
from numpy.typing import NDArray

from elman_bundle import ByteVocabulary, CharacterVocabulary
from elman_bundle.subword_vocabulary import SubwordVocabulary
from elman_server.decoding.constraints import (
    MAX_CHARACTERS,
    Constraint,
    ConstraintKind,
    Grammar,
    Grammars,
    Matcher,
    allowed_tokens,
    grammars,
    matching,
)
from elman_server.decoding.constraints.sandbox import KILLED, Trial
from elman_server.errors import ConstraintError
from tests.support.amount import examples
from tests.support.grammars import CHARACTERS, EXPRESSIONS, JSON_SCHEMA, LARK, PERSON, REGEX, Vocabulary, matches

CORPUS = [
    json.dumps({"person": {"name": "Ada é 語", "age": 36, "role": "writer", "tags": ["abc"]}, "place": [1.5, -2]}),
    "2026-01-31, ada@example.org (yes, no) rgb(12,34,56) hello, world! 1 + 2 * (30 / 4)\n",
]


def vocabulary_of(name: str) -> tuple[list[bytes | None], int | None]:
    """Return the bytes of the tokens and the end token of a kind of vocabulary; one kind has an end token."""
    if name == "characters":
        spelled = CharacterVocabulary(["\N{REPLACEMENT CHARACTER}", *CHARACTERS], unknown_id=0).token_bytes()
        return [*spelled, b"<end>"], len(spelled)
    if name == "bytes":
        return list(ByteVocabulary().token_bytes()), None
    subwords = SubwordVocabulary.from_texts([*CORPUS * 20, "".join(CHARACTERS)], 500)
    return list(subwords.token_bytes()), None


@pytest.fixture(scope="module", params=["characters", "bytes", "subwords"])
def vocabulary(request: pytest.FixtureRequest) -> Vocabulary:
    return Vocabulary(*vocabulary_of(request.param))


@pytest.fixture(scope="module")
def characters() -> Vocabulary:
    return Vocabulary(*vocabulary_of("characters"))


class Walk:
    """An output of random allowed tokens and then, after `steps` tokens, of tokens that lead to an end."""

    def __init__(self, vocabulary: Vocabulary, matcher: Matcher, random: np.random.Generator, steps: int) -> None:
        self.vocabulary, self.matcher, self.random, self.steps = vocabulary, matcher, random, steps
        self.tokens: list[int] = []
        self.is_over = False

    def advance(self, allowed: NDArray[np.bool_]) -> None:
        matcher, end_token = self.matcher, self.vocabulary.end_token
        assert matcher.error is None
        if end_token is not None:
            assert allowed[end_token] == matcher.is_complete
        choices = np.flatnonzero(allowed)
        self.is_over = matcher.is_exhausted or (matcher.is_complete and len(self.tokens) >= self.steps)
        if self.is_over:
            assert matcher.is_complete
            return
        token = self._leading_to_the_end(choices) if len(self.tokens) >= self.steps else self.random.choice(choices)
        matcher.accept(int(token))
        self.tokens.append(int(token))
        assert matcher.error is None

    def _leading_to_the_end(self, choices: NDArray[np.intp]) -> int:
        """Return a token that closes something, in most cases."""
        spelled = {self.vocabulary.spelled[token]: int(token) for token in choices}
        closing = [spelled[end] for end in map(str.encode, '"}])@.0') if end in spelled]
        return closing[0] if closing and self.random.random() < 0.8 else int(self.random.choice(choices))

    @property
    def output(self) -> bytes:
        tokens = self.tokens[:-1] if self.tokens[-1:] == [self.vocabulary.end_token] else self.tokens
        return b"".join(self.vocabulary.bytes_of(token) for token in tokens)


@pytest.mark.parametrize(("kind", "text"), EXPRESSIONS)
def test_every_walk_over_allowed_tokens_becomes_a_match(
    vocabulary: Vocabulary, kind: ConstraintKind, text: str
) -> None:
    random = np.random.default_rng(0)
    walks = [Walk(vocabulary, vocabulary.start(kind, text), random, steps) for steps in (0, 1, 3, 5, 10, 20, 40, 80)]
    for _ in range(1000):
        unfinished = [walk for walk in walks if not walk.is_over]
        for walk, allowed in zip(
            unfinished, vocabulary.allowed([walk.matcher for walk in unfinished]) if unfinished else [], strict=True
        ):
            walk.advance(allowed)
    for walk in walks:
        assert walk.is_over, walk.output
        assert matches(kind, text, walk.output.decode()), walk.output


def viable(grammars: Vocabulary, kind: ConstraintKind, text: str, spelled: bytes) -> bool:
    """Return whether a match may begin with these bytes, checked byte by byte."""
    return grammars.accept(grammars.start(kind, text), spelled).error is None


@pytest.mark.parametrize(("kind", "text"), [EXPRESSIONS[index] for index in (1, 5, 7, 9, 11, 15, 20, 23)])
def test_a_token_is_allowed_if_and_only_if_its_bytes_are(kind: ConstraintKind, text: str) -> None:
    subwords, single = Vocabulary(*vocabulary_of("subwords")), Vocabulary(*vocabulary_of("bytes"))
    random = np.random.default_rng(0)
    matcher, output = subwords.start(kind, text), b""
    for _ in range(examples(2, everything=12)):  # Every step checks the whole vocabulary.
        allowed = subwords.allowed([matcher])[0]
        for token, spelled in enumerate(subwords.spelled):
            assert allowed[token] == (spelled is not None and viable(single, kind, text, output + spelled)), spelled
        if matcher.is_exhausted:
            break
        token = int(random.choice(np.flatnonzero(allowed)))
        matcher.accept(token)
        output += subwords.bytes_of(token)


LETTERS = [b"a", b"b", b"ab", b"ba", b"aa", b"bab", None]
LONGEST = 6
WORDS = ["".join(word) for length in range(LONGEST + 1) for word in itertools.product("ab", repeat=length)]
letters = Vocabulary(LETTERS, 6)
# Expressions with the length of their longest match.
finite = st.recursive(
    st.sampled_from([("a", 1), ("b", 1), ("", 0), ("ab", 2), ("[ab]", 1), (".", 1)]),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda parts: (parts[0][0] + parts[1][0], parts[0][1] + parts[1][1])),
        st.lists(inner, min_size=2, max_size=3).map(
            lambda parts: (f"({'|'.join(part for part, _ in parts)})", max(longest for _, longest in parts))
        ),
        inner.map(lambda part: (f"({part[0]})?", part[1])),
        inner.map(lambda part: (f"(?:{part[0]}){{0,2}}", 2 * part[1])),
    ),
    max_leaves=5,
).filter(lambda made: made[1] <= LONGEST)


@given(finite)
@settings(max_examples=examples(20, everything=60))
def test_the_allowed_tokens_are_exactly_those_that_continue_a_match(made: tuple[str, int]) -> None:
    expression, _ = made
    words = [word for word in WORDS if re.fullmatch(expression, word)]
    pending = [("", letters.start(REGEX, expression))]
    for _ in range(40):
        if not pending:
            break
        output, matcher = pending.pop(0)
        following = [
            spelled for spelled in LETTERS[:-1] if any(word.startswith(output + spelled.decode()) for word in words)
        ]
        allowed = letters.allowed([matcher])[0]
        assert [LETTERS[token] for token in np.flatnonzero(allowed[:-1])] == following
        assert allowed[-1] == matcher.is_complete == (output in words)
        assert matcher.is_exhausted == (not following)
        for spelled in following:
            longer = matcher.copy()
            longer.accept(LETTERS.index(spelled))
            pending.append((output + spelled.decode(), longer))


def test_only_tokens_of_a_match_are_allowed(characters: Vocabulary) -> None:
    matcher = characters.start(REGEX, "ab+")
    assert characters.texts(matcher) == {b"a"}
    assert characters.texts(characters.accept(matcher, "a")) == {b"b"}
    assert characters.texts(characters.accept(matcher, "b")) == {b"b", b"<end>"}
    assert matcher.is_complete
    assert not matcher.is_exhausted
    characters.end(matcher)
    assert matcher.is_complete
    assert matcher.is_exhausted
    assert characters.texts(matcher) == {b"<end>"}


def test_a_match_without_continuation_is_exhausted(characters: Vocabulary) -> None:
    matcher = characters.accept(characters.start(REGEX, "ab?"), "a")
    assert not matcher.is_exhausted
    assert characters.accept(matcher, "b").is_exhausted
    assert characters.start(REGEX, "").is_exhausted
    without_end = Vocabulary([b"a", b"b"], None)
    matcher = without_end.accept(without_end.start(REGEX, "ab"), "ab")
    assert matcher.is_exhausted
    assert without_end.texts(matcher) == set()
    assert without_end.start(REGEX, "").is_exhausted


def test_a_copy_is_independent(characters: Vocabulary) -> None:
    first = characters.accept(characters.start(JSON_SCHEMA, json.dumps(PERSON)), '{"name": "A')
    second = first.copy()
    before = characters.allowed([first])
    characters.accept(first, '"')
    assert (characters.allowed([second]) == before).all()
    characters.accept(second, "da")
    assert characters.texts(first) == {b",", b" ", b"\n"}
    assert characters.texts(second) > {b"a", b'"', b"\\"}
    failed = characters.accept(second.copy(), "\n")
    assert failed.copy().error == failed.error is not None
    assert second.error is None


def test_matchers_of_one_call_do_not_affect_each_other(vocabulary: Vocabulary) -> None:
    random = np.random.default_rng(0)
    matchers = [vocabulary.start(kind, text) for kind, text in EXPRESSIONS]
    for _ in range(10):
        together = vocabulary.allowed(matchers)
        for matcher, row in zip(matchers, together, strict=True):
            assert (vocabulary.allowed([matcher])[0] == row).all()
            if row.any():
                matcher.accept(int(random.choice(np.flatnonzero(row))))
    vocabulary.allowed([])


def test_the_result_can_be_written_to_a_view(characters: Vocabulary) -> None:
    out = np.ones((3, 2 * len(characters.spelled)), np.bool_)
    matcher = characters.start(REGEX, "a")
    allowed_tokens([matcher], out[1:2, ::2])
    assert (out[1, ::2] == characters.allowed([matcher])[0]).all()
    assert out[[0, 2]].all()
    assert out[1, 1::2].all()


def test_tokens_that_are_not_text_are_never_allowed() -> None:
    spelled: list[bytes | None] = [
        b"a",
        b"a",
        b"",
        None,
        b"\xff",
        b"\xffa",
        b"ab",
        b"a" * 2000,
        b"<end>",
        b"\xc3",
        b"\xa9",
    ]
    for end_token in (8, None):
        odd = Vocabulary(spelled, end_token)
        assert list(np.flatnonzero(odd.allowed([odd.start(REGEX, "(a|b|<end>|é)+")])[0])) == (
            [0, 1, 6, 9] if end_token else [0, 1, 6, 8, 9]
        )
        matcher = odd.start(LARK, "start: A\nA: ~/a/")
        assert not odd.allowed([matcher])[0][[2, 3, 4, 5, 7]].any()
        for token in (2, 3, 4, 5, 7):
            refused = matcher.copy()
            refused.accept(token)
            assert refused.error is not None
    spoken = Vocabulary(spelled, None)
    matcher = spoken.start(REGEX, "(é|b)+")
    matcher.accept(9)
    assert list(np.flatnonzero(spoken.allowed([matcher])[0])) == [10]


def test_a_match_that_the_vocabulary_cannot_spell_is_reported() -> None:
    poor = Vocabulary([b"a", b"b"], None)
    with pytest.raises(ConstraintError, match="no output of this model can match: the vocabulary lacks"):
        poor.start(REGEX, "c+|語")
    assert poor.texts(poor.start(REGEX, "語?a")) == {b"a"}
    stuck = poor.accept(poor.start(REGEX, "a語|b"), "a")
    assert poor.texts(stuck) == set()
    assert stuck.error == "the vocabulary lacks what has to follow"
    assert not stuck.is_exhausted
    satisfied = poor.accept(poor.start(REGEX, "a語?"), "a")
    assert poor.texts(satisfied) == set()
    assert satisfied.error is None
    assert satisfied.is_exhausted


def test_a_wrong_token_is_an_error_of_its_output_only(characters: Vocabulary) -> None:
    wrong, early, right = (characters.start(REGEX, "ab") for _ in range(3))
    characters.accept(wrong, "b")
    characters.end(early)
    assert "is not allowed after 0 others" in (wrong.error or "")
    assert "is not allowed after 0 others" in (early.error or "")
    assert not wrong.is_complete
    allowed = characters.allowed([wrong, right, early])
    assert not allowed[[0, 2]].any()
    assert characters.texts(right) == {b"a"}
    after_the_end = characters.accept(characters.start(REGEX, "a"), "aa")
    assert after_the_end.error is not None
    for token in (-1, len(characters.spelled)):
        with pytest.raises(ValueError, match=f"token: got {token}; the vocabulary has the tokens 0 to"):
            right.accept(token)


def test_an_output_that_becomes_too_complex_does_not_affect_others(characters: Vocabulary) -> None:
    heavy, light = characters.start(REGEX, "(a?b?){99}" + "a?" * 1000 + "a" * 1000), characters.start(REGEX, "a+")
    for _ in range(3):
        characters.accept(heavy, "a")
        characters.accept(light, "a")
        allowed = characters.allowed([heavy, light])
    assert "too complex to continue" in (heavy.error or "")
    assert not allowed[0].any()
    assert allowed[1].sum() == 2


def test_a_full_cache_of_states_does_not_end_a_grammar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matching, "LIMITS", LLParserLimits(max_lexer_states=1000, verbose_errors=False))
    own = Vocabulary([b"a", b"b"], None)
    random = np.random.default_rng(0)
    grammar = own.grammars.compile(Constraint(REGEX, "(a|b)*a(a|b){14}"))
    for _ in range(8):
        matcher = grammar.start()
        for number, token in enumerate(random.integers(0, 2, 400)):
            if number % 3:
                assert own.allowed([matcher])[0].all()
            matcher.accept(int(token))
            assert matcher.error is None
    hopeless = own.grammars.compile(Constraint(REGEX, "(a|b)*a(a|b){18}")).start()
    for token in random.integers(0, 2, 3000):
        own.allowed([hopeless])
        hopeless.accept(int(token))
    assert "too many states" in (hopeless.error or "")


ERRORS: list[tuple[ConstraintKind, str, str, int | None]] = [
    (REGEX, "a(b", "unclosed group", 1),
    (REGEX, "é/[^/]/(b", "unclosed group", 7),
    (REGEX, "(?x)é\n  /(b # (\n", "unclosed group", 9),
    (REGEX, "a{3,2}", "the start must be <= the end", 1),
    (REGEX, "a(?=b)", "look-around", 1),
    (REGEX, r"(a)\1", "backreferences are not supported", 3),
    (REGEX, r"a\by", r"\\b and \\B are not supported", 1),
    (REGEX, "^a^b", "are allowed at the beginning only", 2),
    (REGEX, "a$b$", "are allowed at the end only", 1),
    (REGEX, "ab^", "are allowed at the beginning only", 2),
    (REGEX, "$a", "are allowed at the end only", 0),
    (REGEX, "^[$]a$b$", "are allowed at the end only", 5),
    (REGEX, "^a$|^b$c|$d", "are allowed at the end only", None),
    (REGEX, "(?x)a^b # [", "are allowed at the beginning only", 5),
    (REGEX, "a\\", "a backslash that escapes nothing", 1),
    (REGEX, "(?P<x>a)(?P<x>b)", "duplicate capture group name", 12),
    (REGEX, "ab\ud800", "half of a surrogate pair", 2),
    (REGEX, r"\p{Foo}", "Unicode property not found", 0),
    (REGEX, "x" * 100_001, "at most 100,000 characters, not 100,001", None),
    (REGEX, "[^a]?" * 2000, "too complex: ", None),
    (REGEX, "(?-u:\\xff)", "can match invalid UTF-8", 5),
    (JSON_SCHEMA, '{"type": "string",}', "not JSON: Expecting property name", 18),
    (JSON_SCHEMA, "", "not JSON: Expecting value", 0),
    (JSON_SCHEMA, '{"const": NaN}', "NaN is not JSON", 10),
    (JSON_SCHEMA, '{"const": 1e999}', "a number is out of range", None),
    (JSON_SCHEMA, '{"const": "\\ud800"}', "half of a surrogate pair", None),
    (JSON_SCHEMA, "[1]", r"an object, true or false, and not \[1\]", 0),
    (JSON_SCHEMA, "[" * 100_000, "nested too deeply", None),
    (JSON_SCHEMA, '{"items":' * 200 + "{}" + "}" * 200, "nested too deeply", None),
    (JSON_SCHEMA, '{"maxLenght": 3}', "the keyword 'maxLenght' is not supported: /maxLenght", 1),
    (JSON_SCHEMA, '{"properties": {"not": {"not": {}}}}', "'not' is not supported: /properties/not/not", 24),
    (JSON_SCHEMA, '{"items": [{}, {"anyOf": [{}, {"if": 1}]}]}', "'if' is not supported: /items/1/anyOf/1/if", 31),
    (JSON_SCHEMA, '{"type": "null", "' + "x" * 9000 + '": 1}', r"keyword 'x+\.\.\.' is not supported: /x+\.\.\.", 17),
    (JSON_SCHEMA, '{"uniqueItems": true}', "'uniqueItems' is not supported", 1),
    (JSON_SCHEMA, '{"x-guidance": {"lenient": true}, "not": {}}', "only 'whitespace_flexible' can be chosen", 1),
    (JSON_SCHEMA, '{"items": {"x-guidance": {}}}', "'x-guidance' belongs at the top", 11),
    (JSON_SCHEMA, '{"type": "object", "minProperties": 2}', "at most one more than there are 'required'", 19),
    (JSON_SCHEMA, '{"x-guidance": {"whitespace_flexible": 1}}', "only 'whitespace_flexible' can be chosen here, as", 1),
    (JSON_SCHEMA, '{"format": "colour"}', "Unknown format: colour", 1),
    (JSON_SCHEMA, '{"type": "text"}', "Invalid type: text", 1),
    (JSON_SCHEMA, '{"pattern": "a("}', "in a pattern: unclosed group", 1),
    (JSON_SCHEMA, '{"oneOf": [{"type": "string"}, {"minLength": 2}]}', "oneOf is supported only where no two", 1),
    (JSON_SCHEMA, '{"$ref": "#/$defs/x"}', "'\\$ref' leads to no schema: #/\\$defs/x: /\\$ref", 1),
    (JSON_SCHEMA, '{"$ref": "http://127.0.0.1/x"}', "does not fetch", None),
    (JSON_SCHEMA, '{"type": "integer", "minimum": 5, "maximum": 3}', "Unsatisfiable schema", 20),
    (JSON_SCHEMA, "false", "Unsatisfiable schema", None),
    (JSON_SCHEMA, '{"$ref": "#"}', "nothing can match it", None),
    (LARK, 'start: "é" )', "expecting rule, token or statement", 11),
    (LARK, 'start: "a"\n  | "b" (', "Expected token", 20),
    (LARK, 'start: "é" $', "no token of Lark begins like this", 11),
    (LARK, 'start: "é" "a', "an unterminated string", 11),
    (LARK, 'start: "a\nb"', "an unterminated string", 7),
    (LARK, "start: A // /\nA: /b", "an unterminated regular expression", 17),
    (LARK, 'foo: "a"', "no start rule found", None),
    (LARK, "", "no start rule found", None),
    (LARK, "start: other", 'unknown name: "other"', 7),
    (LARK, "start: A\nA: /b[/", "unclosed character class", 12),
    (LARK, "start: A\nA: A", "circular reference", 12),
    (LARK, "start: s\ns: s", "nothing can match it", None),
    (LARK, 'start: "<[5]>" // <[6]>\n  <[7]>', r"'<\[7\]>' is not supported here", 26),
    (LARK, "start: <" + "x" * 9000 + ">", "'<x+\\.\\.\\.' is not supported here", 7),
    (LARK, '%llguidance {"allow_invalid_utf8": true}\nstart: "a"', "'%llguidance' is not supported here", 0),
    (LARK, 'start: a\na[stop="x"]: /a+/', "'stop=' is not supported here", 11),
    (LARK, 'start: "x" %json {"items": {"not": {}}}', "'not' is not supported: /items/not", 28),
    (LARK, 'start: "x" %json {"a" 1}', "not JSON: Expecting ':' delimiter", 22),
    (LARK, '{"grammars": [{"regex": "a"}]}', "expecting rule, token or statement", 0),
]


@pytest.mark.parametrize(("kind", "text", "problem", "position"), ERRORS)
def test_an_error_names_the_problem_and_its_position(
    characters: Vocabulary, kind: ConstraintKind, text: str, problem: str, position: int | None
) -> None:
    with pytest.raises(ConstraintError, match=problem) as caught:
        characters.start(kind, text)
    assert caught.value.position == position
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "text",
    [
        "(a+)+$",
        "(a|a)*b?",
        "a{1000000}",
        "((a{1000}){1000}){1000}",
        "(a|b)*a(a|b){200}",
        "()*",
        "a**",
        "(" * 100 + "a" + ")*" * 100,
        "ab" * 50_000,
        "|".join(f"w{number}" for number in range(14_000)),
    ],
)
def test_heavy_expressions_within_the_limits_are_compiled(characters: Vocabulary, text: str) -> None:
    matcher = characters.start(REGEX, text)
    for _ in range(20):
        allowed = characters.allowed([matcher])[0]
        assert matcher.error is None
        if matcher.is_exhausted:
            break
        assert allowed.any()
        matcher.accept(int(np.flatnonzero(allowed)[0]))


LONG = [
    (LARK, 'start: "', '\\"', "an unterminated string"),
    (LARK, "start: /", "\\/", "an unterminated regular expression"),
    (REGEX, "(?x)a^b#", "[", "are allowed at the beginning only"),
    (REGEX, "(?x)a$b#", "[a", "are allowed at the end only"),
    (JSON_SCHEMA, '{"anyOf":[' * 300 + "{}", ",{}", "nested too deeply"),
    (JSON_SCHEMA, '{"format": "', "regex parse error:\\n", "Unknown format"),
]
ENDS = {'{"a': "]}" * 300, '{"f': '"}'}


@pytest.mark.parametrize(("kind", "start", "repeated", "problem"), LONG)
def test_the_time_of_a_refusal_grows_linearly_with_the_length(
    characters: Vocabulary, kind: ConstraintKind, start: str, repeated: str, problem: str
) -> None:
    def refusal_of(length: int) -> float:
        end = ENDS.get(start[:3], "")
        text = start + repeated * ((length - len(start) - len(end)) // len(repeated)) + end
        started = time.thread_time()  # Does not include the helper.
        with pytest.raises(ConstraintError, match=problem):
            characters.start(kind, text)
        return time.thread_time() - started

    rounds = [(refusal_of(MAX_CHARACTERS // 8), refusal_of(MAX_CHARACTERS)) for _ in range(5)]
    short, long = map(min, zip(*rounds, strict=True))
    assert long / short < 20  # 64 if it grew with the square.


def chained(links: int) -> str:
    links_named = {f"a{link}": {"type": "array", "items": {"$ref": f"#/$defs/a{link + 1}"}} for link in range(links)}
    return json.dumps({"$ref": "#/$defs/a0", "$defs": {**links_named, f"a{links}": {}}})


DOUBLING = 'start: A15\nA0: "a"?\n' + "".join(f"A{number + 1}: A{number} A{number}\n" for number in range(15))


@pytest.mark.parametrize(
    ("kind", "text", "limit"),
    [
        (LARK, DOUBLING, "MiB|s"),
        (JSON_SCHEMA, '{"type": "integer", "multipleOf": 1000003}', "s|MiB"),
        (JSON_SCHEMA, chained(1500), "too deep a recursion"),
        (LARK, "start: A\nA: " + " & ".join(f"/(.|\\n)*[a-z]{{{n}}}(.|\\n)*/" for n in range(2, 32)), "s|MiB"),
    ],
)
def test_expressions_that_would_harm_the_server_are_refused_without_blocking_it(
    characters: Vocabulary, kind: ConstraintKind, text: str, limit: str
) -> None:
    longest, watching = 0.0, threading.Event()

    def watch() -> None:
        nonlocal longest
        last = time.monotonic()
        while not watching.wait(0.002):
            longest, last = max(longest, time.monotonic() - last), time.monotonic()

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with pytest.raises(ConstraintError, match=f"too complex: .*({limit})"):
            characters.start(kind, text)
    finally:
        watching.set()
        watcher.join()
    assert longest < 1.0
    assert characters.texts(characters.start(REGEX, "ab+")) == {b"a"}


def test_other_threads_run_while_a_large_grammar_is_compiled(characters: Vocabulary) -> None:
    large = Constraint(REGEX, "a?" * 4000)
    ticks: list[float] = []
    done = threading.Event()

    def tick() -> None:
        while not done.wait(0.001):
            ticks.append(time.monotonic())

    ticking = threading.Thread(target=tick)
    ticking.start()
    try:
        started = time.monotonic()
        Grammar(characters.grammars._vocabulary, large, large.grammar())
        finished = time.monotonic()
    finally:
        done.set()
        ticking.join()
    assert sum(started < moment < finished for moment in ticks) >= 5


def test_a_killed_helper_is_replaced() -> None:
    own = Vocabulary([b"a"], None)
    own.start(REGEX, "a+")
    helper = own.grammars._sandboxes.queue[-1]._helper
    assert helper is not None
    helper.kill()
    helper.wait()
    assert own.texts(own.start(REGEX, "a*")) == {b"a"}
    second = own.grammars._sandboxes.queue[-1]._helper
    assert second is not None
    del own
    assert second.wait(10) is not None


def test_the_grammars_used_last_are_cached() -> None:
    own = Grammars([b"a", b"b"], None)
    first = own.compile(Constraint(REGEX, "a"))
    assert own.compile(Constraint(REGEX, "a")) is first
    assert own.compile(Constraint(LARK, 'start: "a"')) is not first
    for number in range(1, grammars._CACHED):
        own.compile(Constraint(REGEX, f"a{{{number}}}"))
        assert own.compile(Constraint(REGEX, "a")) is first
    assert len(own._grammars) == grammars._CACHED
    for number in range(grammars._CACHED):
        own.compile(Constraint(REGEX, f"b{{{number}}}"))
    assert own.compile(Constraint(REGEX, "a")) is first  # It is in use.
    for number in range(grammars._CACHED):
        own.compile(Constraint(REGEX, f"b{{{number}}}"))
    dropped = weakref.ref(first)
    del first
    assert dropped() is None


def test_the_refusals_used_last_are_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    own = Grammars([b"a", b"b"], None)
    seen: list[str] = []
    try_out = own._sandboxes.queue[-1].try_out
    monkeypatch.setattr(own._sandboxes.queue[-1], "try_out", lambda grammar: seen.append(grammar) or try_out(grammar))

    def refused(text: str) -> int | None:
        with pytest.raises(ConstraintError, match="unclosed group") as caught:
            own.compile(Constraint(REGEX, text))
        return caught.value.position

    assert [refused("a("), refused("a("), len(seen)] == [1, 1, 1]
    for number in range(grammars._CACHED):
        refused("b" * number + "(")
    assert [len(own._refusals), refused("a("), len(seen)] == [grammars._CACHED, 1, grammars._CACHED + 2]
    # A killed process is no fault of the expression.
    monkeypatch.setattr(own._sandboxes.queue[-1], "try_out", lambda grammar: Trial(KILLED))
    with pytest.raises(ConstraintError, match="was killed"):
        own.compile(Constraint(REGEX, "a"))
    monkeypatch.setattr(own._sandboxes.queue[-1], "try_out", try_out)
    own.compile(Constraint(REGEX, "a"))


def test_threads_compile_and_match_concurrently(characters: Vocabulary) -> None:
    problems: list[BaseException] = []

    def generate(seed: int) -> None:
        try:
            random = np.random.default_rng(seed)
            for kind, text in EXPRESSIONS[seed::4]:
                walk = Walk(characters, characters.start(kind, text), random, 20)
                while not walk.is_over:
                    walk.advance(characters.allowed([walk.matcher])[0])
                assert matches(kind, text, walk.output.decode())
        except BaseException as problem:
            problems.append(problem)

    threads = [threading.Thread(target=generate, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
