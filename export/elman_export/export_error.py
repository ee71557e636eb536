"""The error of an export that must not become a bundle."""


class ExportError(Exception):
    """A module cannot be exported faithfully. The message says what differs or is missing; nothing was written."""
