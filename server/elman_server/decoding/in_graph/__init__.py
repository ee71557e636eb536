"""Decoding inside a model's graph: nodes that sample a token from logits, or score given tokens.

choosing  one token per row
filters   the same among the most probable tokens only (top-k, top-p, min-p)
drawing   the draw itself, which both use
scoring   log-probabilities of given tokens
nodes     the nodes and constants under construction
"""

from elman_server.decoding.in_graph.choosing import GREEDY_TEMPERATURE, Choice, add_checks, add_choice
from elman_server.decoding.in_graph.drawing import LEAST_UNIFORM
from elman_server.decoding.in_graph.filters import Filters
from elman_server.decoding.in_graph.nodes import PREFIX, Nodes
from elman_server.decoding.in_graph.scoring import Score, add_log_probabilities, add_score

__all__ = [
    "GREEDY_TEMPERATURE",
    "LEAST_UNIFORM",
    "PREFIX",
    "Choice",
    "Filters",
    "Nodes",
    "Score",
    "add_checks",
    "add_choice",
    "add_log_probabilities",
    "add_score",
]
