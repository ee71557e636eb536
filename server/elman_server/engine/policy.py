"""The thresholds of the engine, in one place."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EnginePolicy:
    """Every threshold of the engine.

    Attributes:
        step_counts: the numbers of steps that one run can take, ascending from 1. Each is a graph with threads of its
            own, so they are few.
        filtered_step_limit: the largest number of steps of a run in which a row has top-k, top-p or min-p. onnxruntime
            takes seconds to open longer graphs of that kind.
        output_step_counts: the numbers of steps of runs that return more than tokens and labels. Their graphs are
            opened on first use, while the call waits.
        output_bytes_limit: how much memory the additional outputs of one such graph may take.
        filter_candidates: how many of the most probable tokens are looked at for top-p and min-p. They hold the mass of
            nearly every distribution; where they do not, the run is repeated with eight times as many.
        node_limit: the largest number of nodes of a graph, with those of its functions and of the graphs inside nodes.
            Each graph of a model is opened several times, which takes seconds for every ten thousand nodes.
        trial_run_seconds: how long the first run of a graph may take before the model is refused: a Loop in it may
            never end.
        warm_up_seconds: the same for opening a graph of several steps and running it some times.
        warm_up: whether the graphs that requests are likely to need are opened at start-up, not by the first request
            that needs them.
        calibration_runs: how often a run is timed at start-up where the minimum counts.
        partition_trials: how often the two ways to use the threads are timed, alternating.
        partition_trial_steps: the number of steps of such a run, as far as they fit into the time of one.
        partition_trial_runs: runs of one trial.
        partition_speedup: how much faster threads with rows of their own have to be. Each of them reads all weights,
            which costs more where caches are shared with other machines.
        partition_least_run_seconds: shorter runs are not divided among threads: the interpreter, which runs one thread
            at a time, dominates them.
        pin_threads: whether the threads of a run stay on cores of their own while it lasts.
        leaf_state_bytes: how much memory the states of tree nodes without children may take. They depend on the token
            alone and are computed once.
        gathered_children_limit: how many children's states are gathered for one run over tree nodes, padding included.
    """

    step_counts: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    filtered_step_limit: int = 8
    output_step_counts: tuple[int, ...] = (1, 2, 4, 8)
    output_bytes_limit: int = 64 * 1024 * 1024
    filter_candidates: int = 128
    node_limit: int = 20_000
    trial_run_seconds: float = 10.0
    warm_up_seconds: float = 120.0
    warm_up: bool = True
    calibration_runs: int = 5
    partition_trials: int = 12
    partition_trial_steps: int = 8
    partition_trial_runs: int = 4
    partition_speedup: float = 1.07
    partition_least_run_seconds: float = 0.001
    pin_threads: bool = True
    leaf_state_bytes: int = 64 * 1024 * 1024
    gathered_children_limit: int = 16_384


DEFAULT_ENGINE_POLICY = EnginePolicy()
