"""Decoding: from logits to the next token, row by row, whoever shares the batch."""

from server.decoding.choosing import GREEDY_TEMPERATURE, LEAST_UNIFORM, Choice, Filters, add_checks, add_choice
from server.decoding.nodes import PREFIX, Nodes
from server.decoding.randomness import UniformStream
from server.decoding.scoring import Score, add_log_probabilities, add_score
from server.decoding.shaping import Choices, ShapedRows, Shaping

__all__ = [
    "GREEDY_TEMPERATURE",
    "LEAST_UNIFORM",
    "PREFIX",
    "Choice",
    "Choices",
    "Filters",
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
