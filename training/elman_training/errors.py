"""The error that what a person gives to training can cause."""


class TrainingError(Exception):
    """Training cannot start or go on. The message names the file, line or option, and what would be right."""
