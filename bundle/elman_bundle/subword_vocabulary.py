"""Subwords: byte-level byte-pair encoding, trained and run by the package `tokenizers`.

Text becomes the bytes of its UTF-8, and the most frequent neighbours are merged repeatedly (Sennrich, Haddow and Birch
2016; on bytes Radford et al. 2019). Nothing is unknown, and a token may be a part of a character. The file is the
package's own JSON.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from elman_bundle.bundle_errors import BundleError, EncodingError
from elman_bundle.byte_vocabulary import utf8_decoder
from elman_bundle.tokenizer_files import (
    check_bytes,
    normalizes,
    read_tokenizer,
    text_or_none,
    token_spellings,
    token_strings,
)
from elman_bundle.vocabulary import (
    NO_CONTROL,
    TextDecoder,
    TokenIds,
    check_no_control,
    normalize_newlines,
    select_control_ids,
)

_COMPOSED = 4  # characters that the normal form C makes one of, at most
_LONGEST = 16  # bytes of a token that is trained here
# characters; for longer texts, waking the package's thread is worth it, which does not hold the interpreter's lock
_LONG_TEXT = 1000
# Texts that a vocabulary must preserve: every byte that text can hold, and what pre-tokenizers treat specially.
_PROBES = (
    *map(chr, [*range(0x100), *range(0x100, 0x800, 0x40), 0x800, *range(0x1000, 0x10000, 0x1000)]),
    *map(chr, [0x10000, 0x40000, 0x80000, 0xC0000, 0x100000]),
    "  a b   c\n\n  d\t e \r\n",
    "0123456789 12 345 6.7",
)


class SubwordVocabulary:
    """Merged bytes of UTF-8 as tokens.

    Args:
        content: a file of the package `tokenizers`: byte-level BPE that preserves every text, or its normal form C.
        control_ids: the control tokens; a text that would be read as one of them is refused.
        universal_newlines: whether CR LF and CR are read as newlines.

    Raises:
        ValueError: the content is not such a file.
    """

    unknown_id = None

    control_ids = NO_CONTROL
    universal_newlines = False

    def __init__(
        self, content: str, *, control_ids: Iterable[int] = NO_CONTROL, universal_newlines: bool = False
    ) -> None:
        self._content = content
        self._tokenizer = read_tokenizer(content)
        self.tokens = token_strings(self._tokenizer)
        self._bytes = token_spellings(self._tokenizer, self.tokens)
        check_bytes(self._bytes)
        self._normalizes = normalizes(content)
        self.characters_per_token = max(_character_starts(spelled) for spelled in self._bytes if spelled)
        if self._normalizes:
            self.characters_per_token *= _COMPOSED
        self._check_round_trips()
        self.universal_newlines = universal_newlines
        self.control_ids = select_control_ids(control_ids, self)
        for token in self.control_ids:
            self._bytes[token] = None

    def _check_round_trips(self) -> None:
        """Detect changes that the settings alone do not show, such as a special token that merges also produce.

        Raises:
            ValueError: decoding does not reverse encoding.
        """
        added = [token.content for token in self._tokenizer.get_added_tokens_decoder().values()]
        for text in [*_PROBES, *added, *filter(None, map(text_or_none, added))]:
            found = self.decoder().decode(self.encode(text).tolist(), final=True)
            if found != (unicodedata.normalize("NFC", text) if self._normalizes else text):
                raise ValueError(f"it changes text: {text!r} becomes {found!r}")

    @classmethod
    def from_texts(cls, texts: Iterable[str], size: int) -> SubwordVocabulary:
        """Train a vocabulary. The same texts give the same vocabulary.

        Args:
            texts: the texts to learn from; no token spans two texts or two words.
            size: the largest number of tokens, at least 256, because every byte is one of them.
        """
        from tokenizers import Tokenizer
        from tokenizers.decoders import ByteLevel as ByteLevelDecoder
        from tokenizers.models import BPE
        from tokenizers.pre_tokenizers import ByteLevel
        from tokenizers.trainers import BpeTrainer

        tokenizer = Tokenizer(BPE())
        tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
        tokenizer.decoder = ByteLevelDecoder()
        trainer = BpeTrainer(
            vocab_size=size,
            initial_alphabet=ByteLevel.alphabet(),
            max_token_length=_LONGEST,
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer.to_str())

    @classmethod
    def read(
        cls, path: Path, *, control_ids: Iterable[int] = NO_CONTROL, universal_newlines: bool = False
    ) -> SubwordVocabulary:
        """Read a file of the package `tokenizers`.

        Args:
            path: the file.
            control_ids, universal_newlines: as for the class.

        Raises:
            BundleError: the file cannot be read or is not byte-level BPE. The message names it.
        """
        try:
            content = path.read_text(encoding="utf-8")
            return cls(content, control_ids=control_ids, universal_newlines=universal_newlines)
        except (OSError, ValueError) as error:
            raise BundleError(f"{path}: {error}") from error

    def with_control(self, control_ids: Iterable[int]) -> SubwordVocabulary:
        """Return the same vocabulary with other control tokens."""
        return SubwordVocabulary(self._content, control_ids=control_ids, universal_newlines=self.universal_newlines)

    def write(self, path: Path) -> None:
        """Write the package's file."""
        path.write_text(self._content, encoding="utf-8")

    @property
    def size(self) -> int:
        return len(self.tokens)

    def encode(self, text: str) -> TokenIds:
        if "\r" in text:
            text = normalize_newlines(text, self)
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise EncodingError(
                f"the character {text[error.start]!r} is half of a surrogate pair, which no text may hold", error.start
            ) from error
        if len(text) < _LONG_TEXT:
            found = self._tokenizer.encode(text, add_special_tokens=False)
        else:
            (found,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=False)
        ids = np.array(found.ids, dtype=np.int64)
        check_no_control(ids, text, self)
        return ids

    def decoder(self, before: Sequence[int] = ()) -> TextDecoder:
        decoder = _SubwordDecoder(self._bytes)
        decoder.decode(before)
        return decoder

    def token_bytes(self) -> list[bytes | None]:
        return list(self._bytes)

    def token_text(self, token: int) -> str:
        spelled = self._bytes[token]
        return self.tokens[token] if spelled is None else spelled.decode(errors="replace")


class _SubwordDecoder:
    def __init__(self, spelled: list[bytes | None]) -> None:
        self._spelled = spelled
        self._decoder = utf8_decoder()

    def decode(self, ids: Sequence[int], final: bool = False) -> str:
        return self._decoder.decode(b"".join([self._spelled[token] or b"" for token in ids]), final)


def _character_starts(spelled: bytes) -> int:
    """The number of characters that start within the bytes."""
    return sum(byte & 0xC0 != 0x80 for byte in spelled)
