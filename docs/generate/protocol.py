"""The reference of the wire protocol, from the comments of the .proto files."""

from __future__ import annotations

import importlib.resources
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    MethodDescriptorProto,
    ServiceDescriptorProto,
)
from grpc_tools import protoc

_PROTOS = Path(__file__).parents[2] / "protos"
_PACKAGE = ".elman.v1."
# Numbers of fields of descriptor.proto: the path to a comment consists of them and of indices.
_FILE_COMMENT = (2,)
_MESSAGES, _ENUMS, _SERVICES = 4, 5, 6
_METHODS, _FIELDS, _UNIONS, _VALUES = 2, 2, 8, 2

_Path = tuple[int, ...]


def protocol_pages() -> dict[str, str]:
    """A page in Markdown for each .proto file, by the file's stem."""
    files = _files()
    homes = {
        kind.name: _stem(file) for file in files for kinds in (file.message_type, file.enum_type) for kind in kinds
    }
    return {_stem(file): "\n".join(_Page(file, homes).lines()) + "\n" for file in files}


def _files() -> Sequence[FileDescriptorProto]:
    """The .proto files with their comments."""
    sources = sorted(str(path) for path in _PROTOS.glob("elman/v1/*.proto"))
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "set"
        well_known = importlib.resources.files("grpc_tools") / "_proto"
        options = [f"-I{_PROTOS}", f"-I{well_known}", "--include_source_info", f"--descriptor_set_out={output}"]
        if protoc.main(["protoc", *options, *sources]):
            raise RuntimeError("protoc failed; its message is above")
        return FileDescriptorSet.FromString(output.read_bytes()).file


def _stem(file: FileDescriptorProto) -> str:
    return Path(file.name).stem


@dataclass(frozen=True)
class _Page:
    """The page of one .proto file.

    Attributes:
        file: the file.
        homes: for each message and enum of the package the stem of its page.
    """

    file: FileDescriptorProto
    homes: Mapping[str, str]

    @cached_property
    def _comments(self) -> Mapping[_Path, str]:
        return {
            tuple(location.path): location.leading_comments
            for location in self.file.source_code_info.location
            if location.leading_comments
        }

    def _text(self, path: _Path) -> str:
        """The comment of an element, as paragraphs."""
        return "\n\n".join(" ".join(part.split()) for part in self._comments[path].split("\n\n"))

    def _cell(self, path: _Path) -> str:
        """The comment of an element, for the cell of a table."""
        return " ".join(self._comments[path].split()).replace("|", r"\|")

    def lines(self) -> Iterator[str]:
        yield f"# {_stem(self.file).replace('_', ' ').capitalize()}\n"
        yield f"`protos/{self.file.name}`, package `{self.file.package}`\n"
        yield f"{self._text(_FILE_COMMENT)}\n"
        for index, service in enumerate(self.file.service):
            yield from self._service(service, (_SERVICES, index))
        for index, message in enumerate(self.file.message_type):
            yield from self._message(message, (_MESSAGES, index))
        for index, enum in enumerate(self.file.enum_type):
            yield from self._enum(enum, (_ENUMS, index))

    def _service(self, service: ServiceDescriptorProto, path: _Path) -> Iterator[str]:
        yield f"## {service.name} {{ #{service.name} }}\n\n{self._text(path)}\n"
        for index, method in enumerate(service.method):
            yield f"### {method.name} {{ #{service.name}.{method.name} }}\n"
            yield f"{self._signature(method)}\n"
            yield f"{self._text((*path, _METHODS, index))}\n"

    def _signature(self, method: MethodDescriptorProto) -> str:
        request, response = self._link(method.input_type), self._link(method.output_type)
        stream = "stream of "
        return f"{stream * method.client_streaming}{request} → {stream * method.server_streaming}{response}"

    def _message(self, message: DescriptorProto, path: _Path) -> Iterator[str]:
        yield f"## {message.name} {{ #{message.name} }}\n\n{self._text(path)}\n"
        if not message.field:
            return
        yield "| field | type | meaning |\n|---|---|---|"
        last_union = None
        for index, field in enumerate(message.field):
            union = field.oneof_index if _in_union(field) else None
            if union is not None and union != last_union:
                yield f"| *{message.oneof_decl[union].name}* | one of | {self._cell((*path, _UNIONS, union))} |"
            last_union = union
            name = f"{'' if union is None else '&emsp;'}`{field.name}`"
            yield f"| {name} | {self._type(field, message)} | {self._cell((*path, _FIELDS, index))} |"
        yield ""

    def _enum(self, enum: EnumDescriptorProto, path: _Path) -> Iterator[str]:
        yield f"## {enum.name} {{ #{enum.name} }}\n\n{self._text(path)}\n"
        yield "| value | number | meaning |\n|---|---|---|"
        for index, value in enumerate(enum.value):
            yield f"| `{value.name}` | {value.number} | {self._cell((*path, _VALUES, index))} |"
        yield ""

    def _type(self, field: FieldDescriptorProto, message: DescriptorProto) -> str:
        for nested in message.nested_type:
            if nested.options.map_entry and field.type_name.endswith(f".{nested.name}"):
                key, value = map(self._scalar, nested.field)
                return f"map from {key} to {value}"
        if field.label == FieldDescriptorProto.LABEL_REPEATED:
            return f"repeated {self._scalar(field)}"
        return f"{'optional ' if field.proto3_optional else ''}{self._scalar(field)}"

    def _scalar(self, field: FieldDescriptorProto) -> str:
        if field.type_name:
            return self._link(field.type_name)
        return FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()

    def _link(self, type_name: str) -> str:
        """The name of a type; a link where the type is one of this package."""
        name = type_name.removeprefix(_PACKAGE)
        if name not in self.homes:
            return f"`{type_name.removeprefix('.')}`"
        home = self.homes[name]
        return f"[`{name}`]({'' if home == _stem(self.file) else f'{home}.md'}#{name})"


def _in_union(field: FieldDescriptorProto) -> bool:
    """Returns whether the field is part of a oneof; the compiler makes one of its own of each `optional` field."""
    return field.HasField("oneof_index") and not field.proto3_optional
