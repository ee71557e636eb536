"""The settings of a server: what they are, where they come from, and their reference table.

This package imports nothing of the server but its errors, so it also runs where no model can be served.
"""

from elman_server.settings.model import Fsync, LogFormat, ProviderChoice, Settings
from elman_server.settings.presentation import (
    default_of,
    metavar_of,
    option_of,
    panel_of,
    shown_value,
    variable_of,
)
from elman_server.settings.reference import settings_table
from elman_server.settings.sources import LoadedSettings, load_settings, misspelled_variables
from elman_server.settings.store_names import public_store, store_scheme

__all__ = [
    "Fsync",
    "LoadedSettings",
    "LogFormat",
    "ProviderChoice",
    "Settings",
    "default_of",
    "load_settings",
    "metavar_of",
    "misspelled_variables",
    "option_of",
    "panel_of",
    "public_store",
    "settings_table",
    "shown_value",
    "store_scheme",
    "variable_of",
]
