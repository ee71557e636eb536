"""Decoding: from logits to the next token, row by row, whoever shares the batch."""

from server.decoding.beams import LARGEST_LENGTH_PENALTY, BeamParams, BeamSearch, Branches, EarlyStopping, Hypothesis
from server.decoding.choosing import GREEDY_TEMPERATURE, LEAST_UNIFORM, Choice, Filters, add_checks, add_choice
from server.decoding.nodes import PREFIX, Nodes
from server.decoding.randomness import UniformStream
from server.decoding.scoring import Score, add_log_probabilities, add_score
from server.decoding.shaping import Choices, ShapedRows, Shaping

__all__ = [
    "GREEDY_TEMPERATURE",
    "LARGEST_LENGTH_PENALTY",
    "LEAST_UNIFORM",
    "PREFIX",
    "BeamParams",
    "BeamSearch",
    "Branches",
    "Choice",
    "Choices",
    "EarlyStopping",
    "Filters",
    "Hypothesis",
    "Nodes",
    "Score",
    "ShapedRows",
    "Shaping",
    "UniformStream",
    "add_checks",
    "add_choice",
    "add_log_probabilities",
    "add_score",
]
