"""Decoding: from logits to the next token, row by row, whoever shares the batch."""

from server.decoding.choosing import GREEDY_TEMPERATURE, LEAST_UNIFORM, Choice, Filters, add_checks, add_choice
from server.decoding.nodes import PREFIX, Nodes
from server.decoding.randomness import UniformStream

__all__ = [
    "GREEDY_TEMPERATURE",
    "LEAST_UNIFORM",
    "PREFIX",
    "Choice",
    "Filters",
    "Nodes",
    "UniformStream",
    "add_checks",
    "add_choice",
]
