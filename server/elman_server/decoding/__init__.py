"""Decoding: from logits to the next token, row by row, whoever shares the batch.

What the graphs are built with, and what the batch and they share, is here; all else is imported from its module.
"""

from elman_server.decoding.choosing import GREEDY_TEMPERATURE, LEAST_UNIFORM, Choice, Filters, add_checks, add_choice
from elman_server.decoding.nodes import PREFIX, Nodes
from elman_server.decoding.randomness import UniformStream
from elman_server.decoding.scoring import Score, add_log_probabilities, add_score

__all__ = [
    "GREEDY_TEMPERATURE",
    "LEAST_UNIFORM",
    "PREFIX",
    "Choice",
    "Filters",
    "Nodes",
    "Score",
    "UniformStream",
    "add_checks",
    "add_choice",
    "add_log_probabilities",
    "add_score",
]
