"""The bundle: the only contract between export and server. No torch and no onnxruntime here."""

from elman_bundle.errors import BundleError, EncodingError
from elman_bundle.kinds import InputVocabulary, read_vocabulary, write_vocabulary
from elman_bundle.storage import MANIFEST, Bundle, load_bundle, write_bundle
from elman_bundle.subwords import SubwordVocabulary
from elman_bundle.symbols import SymbolVocabulary
from elman_bundle.vocabulary import (
    BEGIN,
    END,
    INNER,
    ByteVocabulary,
    CharacterVocabulary,
    LabelVocabulary,
    TextDecoder,
    TextVocabulary,
    Vocabulary,
    read_tokens,
    write_tokens,
)
from elman_bundle.words import WordVocabulary

__all__ = [
    "BEGIN",
    "END",
    "INNER",
    "MANIFEST",
    "Bundle",
    "BundleError",
    "ByteVocabulary",
    "CharacterVocabulary",
    "EncodingError",
    "InputVocabulary",
    "LabelVocabulary",
    "SubwordVocabulary",
    "SymbolVocabulary",
    "TextDecoder",
    "TextVocabulary",
    "Vocabulary",
    "WordVocabulary",
    "load_bundle",
    "read_tokens",
    "read_vocabulary",
    "write_bundle",
    "write_tokens",
    "write_vocabulary",
]
