"""Export of torch modules to bundles, which are checked before they are written."""

import elman_protos.telemetry  # noqa: F401  Before onnxruntime is imported.
from elman_export.bundle_export import export_bundle
from elman_export.contract import EncoderModule, Labels, NextToken, Source, StepModule, Token, Tree, Values
from elman_export.export_error import ExportError
from elman_export.training_run import export_run

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
