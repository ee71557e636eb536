"""The one error that a bundle can cause, and the one that text can cause."""


class BundleError(Exception):
    """A bundle cannot be used. The message names the bundle, the field or file, and what would be right."""


class EncodingError(ValueError):
    """A text holds a character that the vocabulary cannot express.

    Attributes:
        position: the character's index in the text.
    """

    def __init__(self, message: str, position: int) -> None:
        super().__init__(message)
        self.position = position
