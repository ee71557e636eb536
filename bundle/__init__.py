"""The bundle: the only contract between export and server. No torch and no onnxruntime here."""

from bundle.errors import BundleError, EncodingError
from bundle.kinds import InputVocabulary, read_vocabulary, write_vocabulary
from bundle.storage import MANIFEST, Bundle, load_bundle, write_bundle
from bundle.subwords import SubwordVocabulary
from bundle.symbols import SymbolVocabulary
from bundle.vocabulary import (
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
from bundle.words import WordVocabulary

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
