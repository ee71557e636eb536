"""The requests that ask which models there are. They are passed on field by field."""

from __future__ import annotations

from elman_protos import v1
from elman_server.rpc.requests.fields import RequestFields

RequestFields(v1.ListModelsRequest, content=())
RequestFields(v1.GetModelRequest, content={"name"})
