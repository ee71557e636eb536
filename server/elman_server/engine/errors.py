"""What can go wrong in the engine."""


class EngineError(Exception):
    """A step failed. The state of every row is what it was before the step."""


class ModelLoadError(Exception):
    """A bundle cannot be served. The message names the file and what is wrong with it."""
