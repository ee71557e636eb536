"""Beam search: its parameters, the search, its results."""

from elman_server.decoding.beams.params import LARGEST_LENGTH_PENALTY, BeamParams, EarlyStopping, Hypothesis
from elman_server.decoding.beams.search import BeamSearch, Branches, ScoresError

__all__ = [
    "LARGEST_LENGTH_PENALTY",
    "BeamParams",
    "BeamSearch",
    "Branches",
    "EarlyStopping",
    "Hypothesis",
    "ScoresError",
]
