"""The errors that a bundle and a text can cause."""


class BundleError(Exception):
    """A bundle cannot be used. The message names the bundle, the field or file, and the rule."""


class EncodingError(ValueError):
    """A text holds a character that the vocabulary cannot express.

    Attributes:
        position: the index of the character in the text.
    """

    def __init__(self, message: str, position: int) -> None:
        super().__init__(message)
        self.position = position
