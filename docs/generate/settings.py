"""The reference of the server's settings."""

from __future__ import annotations

from elman_server.settings import settings_table

_HEAD = """\
# Settings

Each setting of `elman serve` is an option, an environment variable, and a key of the TOML file that
`--config` names. The key is the name of the option without its dashes: `chunk_ms` for `--chunk-ms`.
The command line overrides the environment, the environment overrides the file, and the file
overrides the defaults. `elman serve --show-settings` prints the settings in effect and their
sources. A variable that is empty counts as absent; several bundles in `ELMAN_BUNDLES` are separated
by commas.
"""


def settings_page() -> str:
    """The page in Markdown."""
    return f"{_HEAD}\n{settings_table().rstrip()}\n"


if __name__ == "__main__":
    print(settings_page())
