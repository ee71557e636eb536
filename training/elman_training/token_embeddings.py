"""The embeddings of a network's tokens: nearest neighbours, and a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import cos, pi, sin
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import matplotlib
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from elman_bundle import BEGIN, END, INNER, EncodingError, InputVocabulary
from elman_training.checkpoint import load_best, load_config, load_vocabularies
from elman_training.training_error import TrainingError

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.transforms import Bbox

Vectors = NDArray[np.float32]

_COLOURS = ("#1d4ed8", "#c2410c", "#15803d", "#7e22ce", "#0e7490", "#a16207", "#be123c", "#4d7c0f", "#334155")
_DISTANCES = (7, 13, 20)  # points between a dot and its label
_DIRECTIONS = (0, 7, 1, 4, 3, 5, 2, 6)  # eighths of a turn, the preferred one first


@runtime_checkable
class Embedder(Protocol):
    """A network that reads tokens as vectors."""

    @property
    def embeddings(self) -> Mapping[str, Tensor]:
        """The vectors of the tokens, [V, E], by the name of their vocabulary in the run."""
        ...


@dataclass(frozen=True)
class Neighbour:
    """A token near another one.

    Attributes:
        token: its id.
        similarity: the cosine of the angle between the two vectors.
    """

    token: int
    similarity: float


class EmbeddingTable:
    """The vectors of a vocabulary's tokens.

    Args:
        vocabulary: the vocabulary of the tokens.
        vectors: [V, E].

    Attributes:
        text_tokens: the tokens that stand for text, in order; without the unknown token and the tokens that mark the
            beginning and the end of a text or an inner node.
    """

    def __init__(self, vocabulary: InputVocabulary, vectors: Vectors) -> None:
        self.vocabulary = vocabulary
        self.vectors = vectors
        self.text_tokens = [
            token
            for token in range(vocabulary.size)
            if token != vocabulary.unknown_id and vocabulary.token_text(token) not in (BEGIN, END, INNER)
        ]
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        self._directions = vectors / np.maximum(lengths, np.finfo(np.float32).tiny)

    def nearest(self, token: int, count: int) -> list[Neighbour]:
        """The text tokens with the largest cosine similarity to a token, the nearest first."""
        others = [other for other in self.text_tokens if other != token]
        similarities = self._directions[others] @ self._directions[token]
        order = np.argsort(-similarities, kind="stable")[:count]
        return [Neighbour(others[place], float(similarities[place])) for place in order]

    def find(self, text: str) -> int | None:
        """The token of a text; None if the text is not exactly one known token."""
        try:
            ids = self.vocabulary.encode(text)
        except EncodingError:
            return None
        return int(ids[0]) if len(ids) == 1 and ids[0] != self.vocabulary.unknown_id else None

    def shown(self, token: int) -> str:
        """A token for people: quoted if it has white space or other invisible characters, or only punctuation."""
        text = self.vocabulary.token_text(token)
        plain = text.isprintable() and text.split() == [text] and any(map(str.isalnum, text))
        return text if plain else repr(text)


def load_embeddings(run: Path) -> dict[str, EmbeddingTable]:
    """The embeddings of a run's best weights, by the names of their vocabularies.

    Raises:
        TrainingError: the folder holds no run, one that has kept no weights, or one without an embedding.
    """
    vocabularies = load_vocabularies(run, load_config(run))
    network = load_best(run)
    found = network.embeddings if isinstance(network, Embedder) else {}
    if not found:
        raise TrainingError(f"{run}: its network has no embedding: it does not read tokens as vectors")
    return {name: EmbeddingTable(vocabularies[name], vectors.detach().numpy()) for name, vectors in found.items()}


def principal_components(vectors: Vectors) -> tuple[Vectors, tuple[float, float]]:
    """Project vectors on their two principal components (Pearson 1901).

    The sign of a component is chosen so that the vector furthest along it is on the positive side.

    Args:
        vectors: [N, E].

    Returns:
        The points, [N, 2], and each component's share of the variance.
    """
    centred = np.zeros((max(2, len(vectors)), max(2, vectors.shape[1])), np.float32)
    centred[: len(vectors), : vectors.shape[1]] = vectors - vectors.mean(axis=0)
    _, lengths, directions = np.linalg.svd(centred, full_matrices=False)
    points = centred[: len(vectors)] @ directions[:2].T
    furthest = points[np.abs(points).argmax(axis=0), [0, 1]]
    first, second, *_ = (lengths**2 / max(float((lengths**2).sum()), np.finfo(np.float32).tiny)).tolist()
    return points * np.where(furthest < 0, -1, 1).astype(np.float32), (first, second)


def draw_embeddings(table: EmbeddingTable, groups: Sequence[Sequence[int]], picture: Path) -> None:
    """Draw tokens along the two principal components of their vectors.

    Args:
        table: the vectors.
        groups: the tokens. Each group has a colour, and its first token is bold if there are several groups. A token of
            several groups is drawn in the first one.
        picture: the PNG to write.
    """
    colours = {
        token: _COLOURS[index % len(_COLOURS)] for index, group in reversed(list(enumerate(groups))) for token in group
    }
    tokens = list(dict.fromkeys(token for group in groups for token in group))
    points, shares = principal_components(table.vectors[tokens])
    figure, axes = pyplot.subplots(figsize=(9, 6.5), dpi=110, layout="constrained")
    axes.scatter(points[:, 0], points[:, 1], s=9, c=[colours[token] for token in tokens], linewidths=0)
    axes.margins(0.08)
    axes.set_xlabel(f"first principal component: {shares[0]:.0%} of the variance")
    axes.set_ylabel(f"second: {shares[1]:.0%}")
    axes.spines[["top", "right"]].set_visible(False)
    figure.draw_without_rendering()  # Settles the layout before labels are placed in it.
    figure.set_layout_engine("none")
    heads = {group[0] for group in groups} if len(groups) > 1 else set()
    labels = [_Label(table.shown(token), colours[token], "bold" if token in heads else "normal") for token in tokens]
    _place_labels(axes, points, labels)
    figure.savefig(picture)
    pyplot.close(figure)


@dataclass(frozen=True)
class _Label:
    text: str
    colour: str
    weight: Literal["bold", "normal"]


def _place_labels(axes: Axes, points: Vectors, labels: Sequence[_Label]) -> None:
    """Place each label next to its point without overlaps; a point whose label has no room stays a dot."""
    taken = [Bbox.from_extents(x - 3, y - 3, x + 3, y + 3) for x, y in axes.transData.transform(points)]
    room = axes.get_window_extent()
    for point, label in zip(points, labels, strict=True):
        drawn = axes.annotate(
            label.text.replace("$", r"\$"), point, (0, 0), textcoords="offset points", fontsize=8, ha="center",
            va="center", color=label.colour, weight=label.weight,
        )  # fmt: skip
        size = drawn.get_window_extent()
        for distance, direction in product(_DISTANCES, _DIRECTIONS):
            angle = direction * pi / 4
            across = cos(angle) * (distance + size.width / 2)
            up = sin(angle) * (distance + size.height / 2)
            place = size.translated(across, up)
            inside = room.fully_contains(*place.min) and room.fully_contains(*place.max)
            if inside and not place.count_overlaps(taken):
                break
        else:
            drawn.remove()
            continue
        points_per_pixel = 72 / axes.figure.dpi
        drawn.set_position((across * points_per_pixel, up * points_per_pixel))
        taken.append(place)
