"""Export: torch modules to bundles, checked before they are written."""

from elman_export.contract import EncoderModule, Labels, NextToken, Source, StepModule, Token, Tree, Values
from elman_export.export_error import ExportError
from elman_export.training_run import export_run
from elman_export.writer import export_bundle

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
