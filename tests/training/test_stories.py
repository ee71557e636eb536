"""Stories: the answers follow from the stated number of facts, and shortcuts do not find them."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from itertools import combinations

import pytest

from elman_training.encoder_decoder.stories import PLACES, Story, make_stories

STATEMENT = re.compile(
    r"(?P<person>[A-Z][a-z]+) (?:"
    r"(?:went to|walked to|ran to|moved to|hurried to) the (?P<place>[a-z]+(?: [a-z]+)?)"
    r"|(?:took|picked up|grabbed|got) the (?P<taken>[a-z]+)"
    r"|(?:dropped|put down|left|set down) the (?P<put>[a-z]+))"
)


def statements_of(story: Story) -> list[str]:
    assert story.passage.endswith(" .")
    return story.passage.removesuffix(" .").split(" . ")


def read(statements: list[str], question: str) -> str | None:
    """Return the answer that follows from the statements, or None if there is none.

    It tracks the positions of all people and things, using only the statements.
    """
    people: dict[str, str] = {}
    carried: dict[str, str] = {}
    paths: dict[str, list[str]] = {}

    def seen(thing: str, place: str | None) -> None:
        path = paths.setdefault(thing, [])
        if place is not None and path[-1:] != [place]:
            path.append(place)

    for statement in statements:
        parsed = STATEMENT.fullmatch(statement)
        assert parsed is not None, statement
        person = parsed["person"]
        if parsed["place"]:
            people[person] = parsed["place"]
            for thing in [thing for thing, carrier in carried.items() if carrier == person]:
                seen(thing, parsed["place"])
        elif parsed["taken"]:
            carried[parsed["taken"]] = person
            seen(parsed["taken"], people.get(person))
        else:
            carried.pop(parsed["put"], None)
            seen(parsed["put"], people.get(person))
    if match := re.fullmatch(r"Where is ([A-Z][a-z]+) \?", question):
        return people.get(match[1])
    if match := re.fullmatch(r"Where is the ([a-z]+) \?", question):
        return (paths.get(match[1]) or [None])[-1]
    match = re.fullmatch(r"Where was the ([a-z]+) before the ([a-z]+(?: [a-z]+)?) \?", question)
    assert match is not None, question
    path = paths.get(match[1], [])
    return path[path.index(match[2]) - 1] if match[2] in path[1:] else None


@pytest.mark.parametrize("facts", [1, 2, 3])
def test_answers_follow_from_the_passage(facts: int) -> None:
    for story in make_stories(1000, 1, facts):
        statements = statements_of(story)
        assert 4 <= len(statements) <= 14
        assert read(statements, story.question) == story.answer
        assert story.facts == facts


@pytest.mark.parametrize("facts", [1, 2, 3])
def test_stories_need_the_stated_number_of_facts(facts: int) -> None:
    for story in make_stories(40, 2, facts):
        statements = statements_of(story)
        result = [
            size
            for size in range(1, facts + 1)
            for chosen in combinations(statements, size)
            if read(list(chosen), story.question) == story.answer
        ]
        assert min(result) == facts


def test_a_question_about_the_past_has_one_answer() -> None:
    for story in make_stories(500, 3, 3):
        before = story.question.removesuffix(" ?").rpartition(" the ")[2]
        assert before not in (story.answer, *story.choices)
        assert before in story.passage


@pytest.mark.parametrize("facts", [1, 2, 3])
def test_choices_are_distinct_and_balanced(facts: int) -> None:
    stories = make_stories(2000, 4, facts)
    places = Counter(story.choices.index(story.answer) for story in stories)
    assert all(400 < places[place] < 600 for place in range(4))
    for story in stories:
        assert len(set(story.choices)) == len(story.choices) == 4
        assert set(story.choices) <= set(PLACES)
    assert any(other != story.answer and other.startswith(story.answer) for story in stories for other in story.choices)
    assert 0.2 < sum(" " in story.answer for story in stories) / len(stories) < 0.6


def test_same_seed_gives_the_same_stories() -> None:
    stories = [story for facts in (1, 2, 3) for story in make_stories(300, 7, facts)]
    parsed = "\n".join(repr((story.passage, story.question, story.answer, story.choices)) for story in stories)
    assert hashlib.sha256(parsed.encode()).hexdigest()[:16] == "775c572b55bf7a6c"
    assert make_stories(100, 7, 2) == make_stories(300, 7, 2)[:100]


def test_stories_differ_by_seed_and_facts() -> None:
    passages = [story.passage for seed in (0, 1) for facts in (1, 2, 3) for story in make_stories(500, seed, facts)]
    assert len(set(passages)) > 0.99 * len(passages)


def test_invalid_number_of_facts_is_rejected() -> None:
    with pytest.raises(ValueError, match="facts: got 4; stories have 1, 2 or 3"):
        make_stories(1, 0, 4)


FIGURES = {
    1: {"last": 32, "first": 27, "commonest": 39},
    2: {"last": 23, "first": 15, "commonest": 26, "holder": 55},
    3: {"last": 16, "first": 26, "commonest": 34, "holder": 10},
}


def place_of(statement: str) -> str | None:
    parsed = STATEMENT.fullmatch(statement)
    return parsed["place"] if parsed else None


def last_holder_place(story: Story) -> str:
    """Return the last place of the person who took or put down the thing last."""
    thing = story.question.split(" the ")[1].split()[0]
    statements = statements_of(story)
    holder = [statement.split()[0] for statement in statements if statement.endswith(f" the {thing}")][-1]
    return [place for statement in statements if statement.startswith(holder) and (place := place_of(statement))][-1]


@pytest.mark.parametrize(
    "facts", [1, *(pytest.param(facts, marks=pytest.mark.slow("makes 10,000 longer stories")) for facts in (2, 3))]
)
def test_shortcuts_do_not_solve_the_stories(facts: int) -> None:
    """Compute the figures of the module's docstring."""
    stories = make_stories(10_000, 0, facts)
    right: Counter[str] = Counter()
    for story in stories:
        mentioned = [place for statement in statements_of(story) if (place := place_of(statement))]
        counts = Counter(mentioned)
        commonest = [place for place, count in counts.items() if count == max(counts.values())]
        right["last"] += mentioned[-1] == story.answer
        right["first"] += mentioned[0] == story.answer
        right["commonest"] += story.answer == commonest[0]
        if facts > 1:
            right["holder"] += last_holder_place(story) == story.answer
    shares = {name: round(100 * count / len(stories)) for name, count in right.items()}
    assert shares == FIGURES[facts]
    assert max(Counter(story.answer for story in stories).values()) < 0.1 * len(stories)
