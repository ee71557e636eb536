"""The models of a server by name, and which of them a request means."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from elman_server.errors import InvalidFieldError, ModelNotFoundError, ModelUnsuitableError, listed, shortened
from elman_server.inference.model import LabelOutput, ServedModel

_NAME_CHARACTERS = 80  # of an unknown name that a message repeats


class ModelRegistry:
    """All models of a server, sorted by name.

    The methods that find a model take its name; without a name they return the only model that suits the call.

    Args:
        models: the models.
    """

    def __init__(self, models: Iterable[ServedModel]) -> None:
        self._models = {model.name: model for model in sorted(models, key=lambda model: model.name)}

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._models.values())

    def named(self, name: str, field: str) -> ServedModel:
        """Return the model of a name.

        Args:
            name: the name.
            field: the field of the request that holds it.

        Raises:
            InvalidFieldError: the name is empty.
            ModelNotFoundError: there is no model of that name.
        """
        if name in self._models:
            return self._models[name]
        if not name:
            raise InvalidFieldError(field, "none", f"a name is needed; this server holds {self._known()}")
        got, rule = (
            repr(shortened(name, _NAME_CHARACTERS)),
            f"there is no such model; this server holds {self._known()}",
        )
        raise ModelNotFoundError(field, got, rule)

    def that_generates(self, name: str) -> ServedModel:
        """Return the model of a call that generates or scores text.

        Raises:
            InvalidFieldError: there is no such model, or the name is needed.
        """
        model = self._chosen(name, lambda model: model.generates, "can generate text", "model")
        if not model.generates:
            rule = "it has labels and does not generate text"
            raise ModelUnsuitableError("model", repr(model.name), rule, "Use Classify")
        return model

    def that_labels(self, name: str, field: str = "model") -> tuple[ServedModel, LabelOutput]:
        """Return the model of a call that labels, and its labels.

        Raises:
            InvalidFieldError: there is no such model, or the name is needed.
        """
        model = self._chosen(name, lambda model: model.label_output is not None, "can label", field)
        if model.label_output is None:
            raise ModelUnsuitableError(field, repr(model.name), "it generates text and has no labels", "Use Generate")
        return model, model.label_output

    def that_keeps_sessions(self, name: str) -> ServedModel:
        """Return the model of a new session; whether it can keep one is known to `ServedModel.for_sessions`."""
        return self._chosen(name, _reads_tokens_only, "can keep a session", "model")

    def that_reads(self, name: str) -> ServedModel:
        """Return the model of a call that looks inside a model while it reads a text.

        Raises:
            InvalidFieldError: there is no such model, or the name is needed.
        """
        model = self._chosen(name, _reads_tokens_only, "can read an input", "model")
        if model.reads_trees:
            raise ModelUnsuitableError("model", repr(model.name), "it reads trees", "Use Classify")
        if model.has_encoder:
            rule = "it starts from a source, which this call does not have"
            raise ModelUnsuitableError("model", repr(model.name), rule, "Use Generate, Choose, Score or Classify")
        if model.reads_numbers:
            raise ModelUnsuitableError("model", repr(model.name), "it reads numbers", "Use Classify or StreamClassify")
        return model

    def _chosen(self, name: str, suits: Callable[[ServedModel], bool], ability: str, field: str) -> ServedModel:
        if name:
            return self.named(name, field)
        suitable = [model for model in self._models.values() if suits(model)]
        if not suitable:
            rule = f"no model of this server {ability}; it holds {self._known()}"
            raise ModelUnsuitableError(field, "none", rule)
        if len(suitable) > 1:
            names = listed(model.name for model in suitable)
            rule = f"{len(suitable)} models of this server {ability}: {names}"
            raise InvalidFieldError(field, "none", rule, "Name one")
        return suitable[0]

    def _known(self) -> str:
        return listed(self._models) or "none"


def _reads_tokens_only(model: ServedModel) -> bool:
    return not (model.reads_numbers or model.has_encoder or model.reads_trees)
