"""The error that wrong input to training causes."""


class TrainingError(Exception):
    """Training cannot start or continue. The message names the file, line or option, and the rule."""
