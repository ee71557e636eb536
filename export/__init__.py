"""Export: torch modules to bundles, checked before they are written."""

from export.contract import EncoderModule, Labels, NextToken, Source, StepModule, Token, Tree, Values
from export.errors import ExportError
from export.training_run import export_run
from export.writer import export_bundle

__all__ = [
    "EncoderModule",
    "ExportError",
    "Labels",
    "NextToken",
    "Source",
    "StepModule",
    "Token",
    "Tree",
    "Values",
    "export_bundle",
    "export_run",
]
