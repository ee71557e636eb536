"""The names in sentences of the documentation exist: parameters, settings, thresholds, fields."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields

import pytest

import elman
from elman import Client
from elman.decoding import Decoding
from elman_export.contract import StepModule
from elman_protos import v1
from elman_server.decoding.constraints.syntaxes.schema_parts import WHITESPACE
from elman_server.engine import EnginePolicy
from elman_server.scheduling import SchedulingPolicy
from elman_server.settings import Settings
from tests.support.documents import Page, pages

NAME = re.compile(r"`([a-z]+(?:_[a-z0-9]+)+)`")
# A figure of the export, a data set, a key of the log, and an option of JSON schemas.
OTHERS = {"padding_largest_difference", "test_2016_flickr", "drain_timeout_s", WHITESPACE}


def known_names() -> set[str]:
    found = {*OTHERS, *elman.__all__, *Settings.model_fields, *Decoding.__annotations__, *vars(StepModule)}
    found |= {field.name for policy in (EnginePolicy, SchedulingPolicy) for field in fields(policy)}
    for name, method in inspect.getmembers(Client, inspect.isfunction):
        found |= {name, *inspect.signature(method).parameters}
    descriptors = [getattr(message, "DESCRIPTOR", None) for message in vars(v1).values()]
    return found | {field.name for descriptor in descriptors for field in getattr(descriptor, "fields", ())}


@pytest.mark.parametrize("page", pages(), ids=str)
def test_names_in_sentences_exist(page: Page) -> None:
    named = {name for name in NAME.findall(page.text) if not name.startswith("elman_")}
    assert not named - known_names()
