"""The bundle, the only contract between export and server. Nothing here needs torch or onnxruntime."""

from elman_bundle.bundle_errors import BundleError, EncodingError
from elman_bundle.bundle_folder import MANIFEST, Bundle, load_bundle, write_bundle
from elman_bundle.byte_vocabulary import ByteVocabulary
from elman_bundle.character_vocabulary import CharacterVocabulary
from elman_bundle.label_vocabulary import LabelVocabulary, Vocabulary
from elman_bundle.subword_vocabulary import SubwordVocabulary
from elman_bundle.symbol_vocabulary import SymbolVocabulary
from elman_bundle.vocabulary import (
    BEGIN,
    END,
    INNER,
    UNKNOWN,
    TextDecoder,
    TextVocabulary,
    TokenIds,
    normalize_newlines,
)
from elman_bundle.vocabulary_files import InputVocabulary, read_tokens, read_vocabulary, write_tokens, write_vocabulary
from elman_bundle.word_vocabulary import WordVocabulary

__all__ = [
    "BEGIN",
    "END",
    "INNER",
    "MANIFEST",
    "UNKNOWN",
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
    "TokenIds",
    "Vocabulary",
    "WordVocabulary",
    "load_bundle",
    "normalize_newlines",
    "read_tokens",
    "read_vocabulary",
    "write_bundle",
    "write_tokens",
    "write_vocabulary",
]
