"""The bundle on disk: a folder with manifest.json (an `elman.v1.ModelSpec`), the ONNX graph and the vocabularies.

`write_bundle` completes a folder that holds the files, and `load_bundle` reads a bundle and checks everything in it, so
a Bundle object is always complete and consistent. The digest of a bundle is the SHA-256 of its manifest, which lists
the SHA-256 of every other file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from google.protobuf import json_format

from elman_bundle.bundle_errors import BundleError
from elman_bundle.label_vocabulary import LabelVocabulary, Vocabulary
from elman_bundle.manifest_validation import validate_spec
from elman_bundle.vocabulary import TextVocabulary
from elman_bundle.vocabulary_files import read_vocabulary
from elman_protos import v1

MANIFEST = "manifest.json"
_TRAINED_HERE = "elman "  # with its version, the producer of bundles made by `elman train` and `elman export`


@dataclass(frozen=True)
class Bundle:
    """A bundle that has been read and checked.

    Attributes:
        path: the folder.
        spec: the manifest.
        digest: "sha256:" and 64 hexadecimal digits, over the complete bundle.
        vocabularies: the vocabularies by name.
    """

    path: Path
    spec: v1.ModelSpec
    digest: str
    vocabularies: Mapping[str, Vocabulary]

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def graph_path(self) -> Path:
        return self.path / self.spec.step.file

    @property
    def encoder_path(self) -> Path | None:
        """The graph of the encoder; None if the model has none."""
        return self.path / self.spec.encoder.file if self.spec.HasField("encoder") else None

    def vocabulary_spec(self, name: str) -> v1.VocabularySpec:
        """The manifest's entry of the vocabulary `name`."""
        return next(spec for spec in self.spec.vocabularies if spec.name == name)

    def text_vocabulary(self, name: str) -> TextVocabulary:
        """The vocabulary `name` of a token input or next-token output."""
        vocabulary = self.vocabularies[name]
        assert not isinstance(vocabulary, LabelVocabulary)  # validate_spec refuses it
        return vocabulary

    def ungenerated_ids(self, name: str) -> tuple[int, ...]:
        """The tokens of the vocabulary `name` that are never generated: the unknown token, and those that are never
        text, such as a begin token or padding; not the end token."""
        spec = self.vocabulary_spec(name)
        spelled = self.text_vocabulary(name).token_bytes()
        found = {token for token, text in enumerate(spelled) if text is None}
        if spec.HasField("end_token_id"):
            found.discard(spec.end_token_id)
        if spec.HasField("unknown_token_id"):
            found.add(spec.unknown_token_id)
        return tuple(sorted(found))

    def labels(self, name: str) -> tuple[str, ...]:
        """The labels of the vocabulary `name` of a label output."""
        vocabulary = self.vocabularies[name]
        assert isinstance(vocabulary, LabelVocabulary)  # validate_spec refuses anything else
        return vocabulary.tokens


def write_bundle(folder: Path, spec: v1.ModelSpec) -> str:
    """Write the manifest into a folder that holds the other files of a bundle.

    Args:
        folder: the folder with the graph and every vocabulary and initial state that `spec` names.
        spec: the manifest. The digests in its `files` are replaced; what they name beyond the files that the other
            fields name belongs to the bundle, too, such as a file with the weights of a graph.

    Returns:
        The bundle's digest.

    Raises:
        BundleError: the manifest is inconsistent, or a file that it names is missing.
    """
    sealed = v1.ModelSpec()
    sealed.CopyFrom(spec)
    paths = referenced_files(sealed) | {file.path for file in spec.files}
    del sealed.files[:]
    for path in sorted(paths):
        if not (folder / path).is_file():
            raise BundleError(f"{folder}: the file {path} that the manifest names is missing")
        sealed.files.add(path=path, sha256=_sha256(_read(folder, path)))
    validate_spec(sealed, folder / MANIFEST)
    text = json_format.MessageToJson(sealed, preserving_proto_field_name=True) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    return load_bundle(folder).digest


def load_bundle(folder: Path) -> Bundle:
    """Read and check a bundle.

    Raises:
        BundleError: the folder holds no bundle, or something in it is missing, damaged or inconsistent.
    """
    manifest = folder / MANIFEST
    try:
        content = _read(folder, MANIFEST)
    except OSError as error:
        raise BundleError(f"{folder} is not a bundle: cannot read {MANIFEST}: {error.strerror}") from error
    spec = v1.ModelSpec()
    try:
        json_format.Parse(content, spec)
    except (json_format.ParseError, UnicodeDecodeError) as error:
        raise BundleError(f"{manifest}: {error}") from error
    validate_spec(spec, manifest)
    _check_files(folder, spec)
    return Bundle(folder, spec, "sha256:" + _sha256(content), _read_vocabularies(folder, spec))


def referenced_files(spec: v1.ModelSpec) -> set[str]:
    """The paths of all files that a manifest names."""
    files = {spec.step.file}
    if spec.HasField("encoder"):
        files.add(spec.encoder.file)
    files.update(vocabulary.file for vocabulary in spec.vocabularies if vocabulary.file)
    files.update(state.file for state in spec.step.states if state.HasField("file"))
    return files


def _check_files(folder: Path, spec: v1.ModelSpec) -> None:
    listed = {file.path: file.sha256 for file in spec.files}
    unlisted = referenced_files(spec) - listed.keys()
    if unlisted:
        raise BundleError(f"{folder / MANIFEST}: files: {min(unlisted)} is used but not listed with its sha256")
    for path, expected in listed.items():
        pure = PurePosixPath(path)
        if pure.is_absolute() or ".." in pure.parts or not path.isprintable():
            raise BundleError(f"{folder / MANIFEST}: files: the path {path!r} leads out of the bundle")
        try:
            found = _sha256(_read(folder, path))
        except OSError as error:
            raise BundleError(
                f"{folder / path}: cannot be read, but the manifest lists it: {error.strerror}"
            ) from error
        if found != expected:
            raise BundleError(
                f"{folder / path}: wrong digest: the manifest says sha256 {expected}, the file has {found}"
            )


def resolve_path(path: Path, *, strict: bool = False) -> Path:
    """Return an absolute path without links.

    Raises:
        BundleError: it holds a NUL, or links that lead to themselves.
        OSError: with `strict`, there is no such file.
    """
    try:
        return path.resolve(strict=strict)
    except (ValueError, RuntimeError) as error:
        raise BundleError(f"{str(path)!r}: is no path: {error}") from error


def _read(folder: Path, path: str) -> bytes:
    """The content of a file.

    Raises:
        BundleError: it is no regular file of this folder: reading a device or a pipe might never end.
        OSError: it cannot be read.
    """
    file = resolve_path(folder / path, strict=True)
    if not file.is_relative_to(folder.resolve()):
        raise BundleError(f"{folder / path}: leads to {file}, out of the bundle; copy the file into the folder")
    if not file.is_file():
        raise BundleError(f"{folder / path}: got something else than a file; a bundle consists of files")
    return file.read_bytes()


def _read_vocabularies(folder: Path, spec: v1.ModelSpec) -> dict[str, Vocabulary]:
    vocabularies: dict[str, Vocabulary] = {}
    inputs = [tensor.token.vocabulary for tensor in spec.step.inputs if tensor.HasField("token")]
    for listed in spec.vocabularies:
        vocabulary = v1.VocabularySpec()
        vocabulary.CopyFrom(listed)
        # What `elman train` reads has universal newlines, and its bundles have not always said so.
        vocabulary.universal_newlines |= spec.provenance.get("producer", "").startswith(_TRAINED_HERE)
        reads_trees = spec.step.HasField("tree") and listed.name in inputs
        try:
            vocabularies[vocabulary.name] = read_vocabulary(
                folder, vocabulary, spec.step.tree.inner_token_id if reads_trees else None
            )
        except ValueError as error:
            raise BundleError(f"{folder / vocabulary.file}: {error}") from error
        size = vocabularies[vocabulary.name].size
        if size != vocabulary.size:
            raise BundleError(
                f"{folder / MANIFEST}: vocabularies[{vocabulary.name}].size is {vocabulary.size}, "
                f"but {vocabulary.file or 'the kind BYTES'} has {size} tokens"
            )
    return vocabularies


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
