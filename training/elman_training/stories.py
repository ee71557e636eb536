"""Stories to be asked about: people walk between places, take objects, carry them, put them down.

They are made as those of Weston et al. (2015, "Towards AI-complete question answering", tasks 1 to 3) are: a small
world is run at random, each of its events is told in a sentence, and what is asked follows from some of the sentences:

    1 fact      Where is Ruth ?                          where she went last
    2 facts     Where is the lamp ?                      who took it, or put it down, and where they were then or went
    3 facts     Where was the lamp before the attic ?    who had it, where they were, and that they went to the attic

A story is a function of the seed and its number. It is drawn from `random.Random.random` alone, whose numbers are the
same in every version of Python.

What somebody gets right who does not read properly, in percent of 10,000 stories (seed 0); one of the four choices at
random is 25:

    facts                                                            1     2     3
    the place that is mentioned last                                32    23    16
    the place that is mentioned first                               27    15    26
    the place that is mentioned most often (the first of equals)    39    26    34
    where the last to have the thing went last                            55    10
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random
from typing import TypeVar

PEOPLE = ("Ruth", "Omar", "Ines", "Paul", "Greta", "Hugo", "Nadia", "Felix", "Carla", "Bruno")
OBJECTS = ("lamp", "book", "basket", "key", "hammer", "letter", "ball", "bottle", "coat", "ladder")
# Some are of two words, and some of these begin as another place does or are begun by one.
PLACES = (
    "garden", "garden shed", "garden gate", "kitchen", "attic", "cellar", "library", "market", "market hall",
    "school", "school yard", "stable",
)  # fmt: skip
_WENT = ("went to", "walked to", "ran to", "moved to", "hurried to")
_TOOK = ("took", "picked up", "grabbed", "got")
_PUT = ("dropped", "put down", "left", "set down")

_FEWEST, _MOST = 4, 14  # statements of a story
_CHOICES = 4
_CARELESS = 2  # of the questions that one way of careless reading answers, one of so many is kept

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Story:
    """A passage and a question about it, of symbols parted by single spaces.

    Attributes:
        passage: the statements, each ended by " .".
        question: ended by " ?".
        answer: a place, of one word or two, without its article.
        choices: four places, the answer among them; as far as there are some, the others are of the passage too.
        facts: how many statements of the passage are needed to answer.
    """

    passage: str
    question: str
    answer: str
    choices: tuple[str, ...]
    facts: int


def make_stories(count: int, seed: int, facts: int) -> list[Story]:
    """Stories that differ with the seed; the first ones of more are the same.

    Args:
        count: how many.
        seed: of everything random.
        facts: how many statements each needs for its answer, 1 to 3.

    Raises:
        ValueError: there are no stories of so many facts.
    """
    if facts not in _QUESTIONS:
        raise ValueError(f"stories need 1, 2 or 3 facts, not {facts}")
    return [_make_story(_Draw(f"{seed} {facts} {number}"), facts) for number in range(count)]


class _Draw:
    """Random choices that no version of Python makes otherwise."""

    def __init__(self, seed: str) -> None:
        self._random = Random(seed)

    def below(self, count: int) -> int:
        return int(self._random.random() * count)

    def one(self, items: Sequence[_Item]) -> _Item:
        return items[self.below(len(items))]

    def some(self, items: Sequence[_Item], count: int) -> list[_Item]:
        """Different ones in random order; all of them where there are no more."""
        left = list(items)
        return [left.pop(self.below(len(left))) for _ in range(min(count, len(left)))]


@dataclass
class _World:
    """What is where, and what has been told of it.

    Attributes:
        statements: the events so far, without the full stop.
        mentioned: the place of each statement that mentions one.
        at: where each person is who has been told of.
        holder: who carries an object.
        had_last: who carries an object, or did before it was put down.
        path: where each object that was ever taken has been, one place after the other.
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
        """What lies where a person is, but for what they have put there; what nobody has had yet may lie anywhere."""
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
        what = draw.below(10)
        if near and what < 4:
            world.take(person, draw.one(near), draw.one(_TOOK))
        elif held and what < 6:
            world.put(person, draw.one(held), draw.one(_PUT))
        else:
            elsewhere = [place for place in places if place != world.at.get(person)]
            world.go(person, draw.one(elsewhere), draw.one(_WENT))
    return world


@dataclass(frozen=True)
class _Question:
    text: str
    answer: str
    careless: tuple[str, ...]  # what those would say who have not read properly


def _where_is_somebody(world: _World) -> Iterator[_Question]:
    for person, place in world.at.items():
        yield _Question(f"Where is {person} ?", place, (world.mentioned[-1],))


def _where_is_something(world: _World) -> Iterator[_Question]:
    for thing, path in world.path.items():
        if len(path) > 1:
            # The second is most often right: as if nothing were ever put down.
            gone = world.at[world.had_last[thing]]
            yield _Question(f"Where is the {thing} ?", path[-1], (world.mentioned[-1], gone, gone))


def _where_was_something(world: _World) -> Iterator[_Question]:
    for thing, path in world.path.items():
        for before, place in pairwise(path):
            if path.count(place) == 1:
                yield _Question(f"Where was the {thing} before the {place} ?", before, (world.mentioned[0],))


_QUESTIONS = {1: _where_is_somebody, 2: _where_is_something, 3: _where_was_something}


def _make_story(draw: _Draw, facts: int) -> Story:
    asked: list[_Question] = []
    while not asked:
        world = _run_world(draw)
        asked = [question for question in _QUESTIONS[facts](world) if _is_kept(draw, question)]
    question = draw.one(asked)
    passage = " ".join(f"{statement} ." for statement in world.statements)
    return Story(passage, question.text, question.answer, _make_choices(draw, world, question), facts)


def _is_kept(draw: _Draw, question: _Question) -> bool:
    return draw.below(_CARELESS ** question.careless.count(question.answer)) == 0


def _make_choices(draw: _Draw, world: _World, question: _Question) -> tuple[str, ...]:
    others = [place for place in PLACES if place != question.answer and f"the {place} ?" not in question.text]
    told = [place for place in others if place in world.mentioned]
    wrong = draw.some(told, _CHOICES - 1)
    wrong += draw.some([place for place in others if place not in told], _CHOICES - 1 - len(wrong))
    return tuple(draw.some([question.answer, *wrong], _CHOICES))
