"""The types of a manifest, for code that reads manifests and knows no other part of the gRPC interface.

A manifest is one `elman.v1.ModelSpec`; these are its parts and the element types of its tensors.
"""

from elman_protos.element_types import BY_DATA_TYPE, ElementType, element_type
from elman_protos.v1 import (
    LABEL_SCOPE_SEQUENCE,
    LABEL_SCOPE_STEP,
    VOCABULARY_KIND_SYMBOLS,
    InputSpec,
    ModelSpec,
    OutputSpec,
    StateSpec,
    VocabularySpec,
)

__all__ = [
    "BY_DATA_TYPE",
    "LABEL_SCOPE_SEQUENCE",
    "LABEL_SCOPE_STEP",
    "VOCABULARY_KIND_SYMBOLS",
    "ElementType",
    "InputSpec",
    "ModelSpec",
    "OutputSpec",
    "StateSpec",
    "VocabularySpec",
    "element_type",
]
