"""The bundle: the only contract between export and server. No torch and no onnxruntime here."""

from bundle.errors import BundleError, EncodingError
from bundle.storage import MANIFEST, Bundle, load_bundle, write_bundle
from bundle.vocabulary import (
    ByteVocabulary,
    CharacterVocabulary,
    LabelVocabulary,
    TextDecoder,
    TextVocabulary,
    Vocabulary,
    read_tokens,
    write_tokens,
)

__all__ = [
    "MANIFEST",
    "Bundle",
    "BundleError",
    "ByteVocabulary",
    "CharacterVocabulary",
    "EncodingError",
    "LabelVocabulary",
    "TextDecoder",
    "TextVocabulary",
    "Vocabulary",
    "load_bundle",
    "read_tokens",
    "write_bundle",
    "write_tokens",
]
