"""Random messages of any type, made from its descriptor: mostly valid, with extremes and nonsense among the values."""

from __future__ import annotations

from typing import Any

from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from hypothesis import strategies as st

_DEEPEST = 4  # messages in messages
_LONGEST = 3  # of repeated fields
_NUMBERS = [0, 1, 2, 3, 7, 64, 1000, 65_536, 2**31 - 1]
_WIDE = [*_NUMBERS, 2**63 - 1]
_SIGNED = [-1, -(2**31)]
_REALS = [0.0, 1.0, 0.5, -1.0, 1e-38, 1e38, -1e30, float("inf"), float("-inf"), float("nan")]
_BYTES = [b"", b"\x00" * 4, b"\xff" * 12, b"\x00\x00\x80\x3f" * 3]
_TEXTS = [
    "",
    "a",
    "hello ",
    "other",
    "\x00",
    "é語🌲",
    "(a (b c))",
    "(2 (1 a) (0 b))",
    "[a-z]+",
    '{"type": "integer"}',
    "x" * 300,
]


def messages(kind: Descriptor, names: dict[str, list[str]], depth: int = 0) -> st.SearchStrategy[Message]:
    """Messages of a type.

    Args:
        kind: the type.
        names: values that text fields of these names mostly have.
        depth: how many messages it is in.
    """
    made: Any = message_factory.GetMessageClass(kind)
    fields = [field for field in kind.fields if field.message_type is None or depth < _DEEPEST]

    @st.composite
    def build(draw: st.DrawFn) -> Message:
        message = made()
        chosen = draw(st.lists(st.sampled_from(range(len(fields))), max_size=5, unique=True)) if fields else []
        for index in chosen:
            _set(message, fields[index].name, draw(_contents(fields[index], names, depth)))
        found: Message = message
        return found

    return build()


def _set(message: Any, name: str, content: Any) -> None:
    if isinstance(content, dict):
        for key, value in content.items():
            getattr(message, name)[key] = value
    elif isinstance(content, list):
        getattr(message, name).extend(content)
    elif isinstance(content, Message):
        getattr(message, name).CopyFrom(content)
    else:
        setattr(message, name, content)


def _contents(field: FieldDescriptor, names: dict[str, list[str]], depth: int) -> st.SearchStrategy[Any]:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        key, value = (_values(part, names, depth) for part in field.message_type.fields)
        return st.dictionaries(key, value, max_size=_LONGEST)
    one = _values(field, names, depth)
    return st.lists(one, max_size=_LONGEST) if field.is_repeated else one


def _values(field: FieldDescriptor, names: dict[str, list[str]], depth: int) -> st.SearchStrategy[Any]:
    if field.message_type is not None:
        return messages(field.message_type, names, depth + 1)
    if field.enum_type is not None:
        return st.sampled_from([*(value.number for value in field.enum_type.values), 99])
    if field.type == FieldDescriptor.TYPE_BYTES:
        return st.sampled_from(_BYTES)
    if field.type == FieldDescriptor.TYPE_STRING:
        return st.sampled_from([*names.get(field.name, []) * 9, *_TEXTS])
    if field.type == FieldDescriptor.TYPE_BOOL:
        return st.booleans()
    if field.type in {FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE}:
        return st.sampled_from(_REALS)
    wide = field.cpp_type in {FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64}
    signed = field.cpp_type in {FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_INT64}
    return st.sampled_from([*(_WIDE if wide else _NUMBERS), *(_SIGNED if signed else [])])
