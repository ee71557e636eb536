"""Generated stories with questions: people walk between places, take objects, carry them, put them down.

They follow Weston et al. (2015, "Towards AI-complete question answering", tasks 1 to 3): a small world is simulated at
random, each of its events becomes a sentence, and a question can be answered from some of the sentences:

    1 fact      Where is Ruth ?                          where she went last
    2 facts     Where is the lamp ?                      who took it, or put it down, and where they were then or went
    3 facts     Where was the lamp before the attic ?    who had it, where they were, and that they went to the attic

A story is a function of the seed and its number. It is drawn from `random.Random.random` alone, whose numbers are the
same in every version of Python.

Accuracy of some shallow strategies, in percent of 10,000 stories (seed 0); a random one of the four choices has 25:

    facts                                                           1     2     3
    the place that is mentioned last                               32    23    16
    the place that is mentioned first                              27    15    26
    the place that is mentioned most often (the first of equals)   39    26    34
    the last place of the person who had the object last                 55    10
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random
from typing import TypeVar

PEOPLE = ("Ruth", "Omar", "Ines", "Paul", "Greta", "Hugo", "Nadia", "Felix", "Carla", "Bruno")
OBJECTS = ("lamp", "book", "basket", "key", "hammer", "letter", "ball", "bottle", "coat", "ladder")
# Some have two words, and some of these share their first word with another place.
PLACES = (
    "garden", "garden shed", "garden gate", "kitchen", "attic", "cellar", "library", "market", "market hall",
    "school", "school yard", "stable",
)  # fmt: skip
_WENT = ("went to", "walked to", "ran to", "moved to", "hurried to")
_TOOK = ("took", "picked up", "grabbed", "got")
_PUT = ("dropped", "put down", "left", "set down")

_FEWEST, _MOST = 4, 14  # statements of a story
_CHOICES = 4
_SHALLOW = 2  # of the questions that a shallow strategy answers correctly, one of this number is kept

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Story:
    """A passage and a question about it, as symbols separated by single spaces.

    Attributes:
        passage: the statements, each ending with " .".
        question: ends with " ?".
        answer: a place, of one or two words, without its article.
        choices: four places with the answer among them; the others are from the passage as far as it has any.
        facts: the number of statements of the passage that are needed for the answer.
    """

    passage: str
    question: str
    answer: str
    choices: tuple[str, ...]
    facts: int


def make_stories(count: int, seed: int, facts: int) -> list[Story]:
    """Generate stories. A larger count adds stories and changes none.

    Args:
        count: the number of stories.
        seed: of everything random.
        facts: the number of statements that each answer needs, 1 to 3.

    Raises:
        ValueError: there are no stories with this number of facts.
    """
    if facts not in _QUESTIONS:
        raise ValueError(f"facts: got {facts}; stories have 1, 2 or 3")
    return [_make_story(_Draw(f"{seed} {facts} {number}"), facts) for number in range(count)]


class _Draw:
    """Random choices that are the same in every version of Python."""

    def __init__(self, seed: str) -> None:
        self._random = Random(seed)

    def below(self, count: int) -> int:
        return int(self._random.random() * count)

    def one(self, items: Sequence[_Item]) -> _Item:
        return items[self.below(len(items))]

    def some(self, items: Sequence[_Item], count: int) -> list[_Item]:
        """Distinct items in random order; all of them if there are no more than `count`."""
        rest = list(items)
        return [rest.pop(self.below(len(rest))) for _ in range(min(count, len(rest)))]


@dataclass
class _World:
    """The positions of people and objects, as far as the statements determine them.

    Attributes:
        statements: the events so far, without the full stop.
        mentioned: the place of each statement that mentions one.
        at: the place of each person who has been mentioned.
        holder: the person who carries each carried object.
        had_last: the person who carries each object, or did before it was put down.
        path: the places where each object that was ever taken has been, in order.
    """

    statements: list[str] = field(default_factory=list)
    mentioned: list[str] = field(default_factory=list)
    at: dict[str, str] = field(default_factory=dict)
    holder: dict[str, str] = field(default_factory=dict)
    had_last: dict[str, str] = field(default_factory=dict)
    path: dict[str, list[str]] = field(default_factory=dict)

    def go(self, person: str, place: str, verb: str) -> None:
        self.at[person] = place
        for thing, holder in self.holder.items():
            if holder == person:
                self.path[thing].append(place)
        self.mentioned.append(place)
        self.statements.append(f"{person} {verb} the {place}")

    def take(self, person: str, thing: str, verb: str) -> None:
        self.holder[thing] = self.had_last[thing] = person
        self.path.setdefault(thing, [self.at[person]])
        self.statements.append(f"{person} {verb} the {thing}")

    def put(self, person: str, thing: str, verb: str) -> None:
        del self.holder[thing]
        self.statements.append(f"{person} {verb} the {thing}")

    def within_reach(self, person: str, things: Sequence[str]) -> list[str]:
        """The objects at a person's place, except the ones that the person put there.

        An object that nobody has taken yet may be anywhere.
        """
        free = [thing for thing in things if thing not in self.holder and self.had_last.get(thing) != person]
        return [thing for thing in free if thing not in self.path or self.path[thing][-1] == self.at[person]]


def _run_world(draw: _Draw) -> _World:
    people, things = draw.some(PEOPLE, 2 + draw.below(3)), draw.some(OBJECTS, 1 + draw.below(3))
    places = draw.some(PLACES, 4 + draw.below(3))
    world = _World()
    for _ in range(_FEWEST + draw.below(_MOST - _FEWEST + 1)):
        person = draw.one(people)
        held = [thing for thing, holder in world.holder.items() if holder == person]
        near = world.within_reach(person, things) if person in world.at else []
        event = draw.below(10)
        if near and event < 4:
            world.take(person, draw.one(near), draw.one(_TOOK))
        elif held and event < 6:
            world.put(person, draw.one(held), draw.one(_PUT))
        else:
            elsewhere = [place for place in places if place != world.at.get(person)]
            world.go(person, draw.one(elsewhere), draw.one(_WENT))
    return world


@dataclass(frozen=True)
class _Question:
    text: str
    answer: str
    shallow: tuple[str, ...]  # the answers of shallow strategies


def _where_is_person(world: _World) -> Iterator[_Question]:
    for person, place in world.at.items():
        yield _Question(f"Where is {person} ?", place, (world.mentioned[-1],))


def _where_is_object(world: _World) -> Iterator[_Question]:
    for thing, path in world.path.items():
        if len(path) > 1:
            # Twice, because it is right most often: it ignores that objects are put down.
            last_holder_at = world.at[world.had_last[thing]]
            shallow = (world.mentioned[-1], last_holder_at, last_holder_at)
            yield _Question(f"Where is the {thing} ?", path[-1], shallow)


def _where_was_object(world: _World) -> Iterator[_Question]:
    for thing, path in world.path.items():
        for before, place in pairwise(path):
            if path.count(place) == 1:
                yield _Question(f"Where was the {thing} before the {place} ?", before, (world.mentioned[0],))


_QUESTIONS = {1: _where_is_person, 2: _where_is_object, 3: _where_was_object}


def _make_story(draw: _Draw, facts: int) -> Story:
    asked: list[_Question] = []
    while not asked:
        world = _run_world(draw)
        asked = [question for question in _QUESTIONS[facts](world) if _is_kept(draw, question)]
    question = draw.one(asked)
    passage = " ".join(f"{statement} ." for statement in world.statements)
    return Story(passage, question.text, question.answer, _make_choices(draw, world, question), facts)


def _is_kept(draw: _Draw, question: _Question) -> bool:
    return draw.below(_SHALLOW ** question.shallow.count(question.answer)) == 0


def _make_choices(draw: _Draw, world: _World, question: _Question) -> tuple[str, ...]:
    others = [place for place in PLACES if place != question.answer and f"the {place} ?" not in question.text]
    mentioned = [place for place in others if place in world.mentioned]
    wrong = draw.some(mentioned, _CHOICES - 1)
    wrong += draw.some([place for place in others if place not in mentioned], _CHOICES - 1 - len(wrong))
    return tuple(draw.some([question.answer, *wrong], _CHOICES))
