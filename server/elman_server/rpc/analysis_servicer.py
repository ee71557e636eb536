"""The calls of elman.v1.AnalysisService."""

from __future__ import annotations

import contextlib

from elman_protos import v1
from elman_server.errors import ModelFailedError, ResponseTooLargeError
from elman_server.rpc.analysis_validation import candidate_ids, context_ids, embedded_ids, inspected_ids
from elman_server.rpc.callers import Context, caller_of
from elman_server.rpc.inspecting import inspect
from elman_server.rpc.mailbox import Mailbox
from elman_server.rpc.models import Models
from elman_server.rpc.prefill import Prefill
from elman_server.rpc.reading import run_readings
from elman_server.rpc.scoring import Scoring
from elman_server.rpc.subjects import Subject, Units, embedded_subject, inspected_units
from elman_server.rpc.validation import Limits, check_size, requested_source
from elman_server.rpc.writing import Writer, grouped
from elman_server.scheduling import Reading
from elman_server.sessions import PrefixCache

_MESSAGE_BYTES = 64 * 1024  # of a stream's messages, about, as far as the limit does not say less
_TOKEN_BYTES = 32  # about what a token of a score takes
_STEP_BYTES = 32  # about what a step takes beside its values
_VALUE_BYTES = 4
_ID_BYTES = 5  # what a token's id takes at most


class AnalysisServicer(v1.AnalysisServiceServicer):
    """Looks into models.

    A call that ends for whatever reason (its client has gone, its deadline has passed, it failed) lets its sequences
    go, whose slots are free after the chunk under way.

    Args:
        models: what there is.
        prefixes: states behind contexts that have been read before.
        limits: what one request may ask for.
        writer: sends messages.
    """

    def __init__(self, models: Models, prefixes: PrefixCache, limits: Limits, writer: Writer) -> None:
        self._models = models
        self._prefixes = prefixes
        self._limits = limits
        self._writer = writer
        self._message_bytes = min(_MESSAGE_BYTES, limits.message_bytes)

    async def Score(  # type: ignore[override] # grpc.aio also takes coroutines that write
        self, request: v1.ScoreRequest, context: Context
    ) -> None:
        check_size(request, self._limits)
        model = self._models.that_generates(request.model)
        source = await requested_source(request, model, self._limits)
        before = await context_ids(request, model, self._limits)
        candidates = await candidate_ids(request, len(before), model, self._limits)
        bypass = request.bypass_prefix_cache
        prefill = Prefill.begin(model, before, self._prefixes, caller_of(context), bypass=bypass, source=source)
        started = v1.ScoreStarted(
            model=model.name,
            digest=model.bundle.digest,
            context_token_count=len(before),
            cached_token_count=prefill.position,
            source_unknown_count=0 if source is None else model.count_unknown_source(source.values),
        )
        await prefill.read_all_but_one()
        scoring = Scoring(
            model,
            before,
            prefill.state,
            source,
            totals_only=request.totals_only,
            longest=max(1, self._message_bytes // _TOKEN_BYTES),
        )
        response = v1.ScoreResponse(started=started)
        async with contextlib.aclosing(scoring.scores(candidates)) as found:
            async for scores in found:
                for some in grouped(scores, self._message_bytes):
                    response.scores.extend(some)
                    await self._writer.write(context, response)
                    response = v1.ScoreResponse()

    async def Embed(self, request: v1.EmbedRequest, context: Context) -> v1.EmbedResponse:
        check_size(request, self._limits)
        model = self._models.that_reads(request.model)
        subject = embedded_subject(request, model)
        inputs = await embedded_ids(request, model, self._limits)
        self._check_answer(subject, [len(ids) for ids in inputs], every_step=request.every_step)
        wanted, output = subject.wanted(every_step=request.every_step), subject.output
        readings = (
            Reading(
                ids,
                Mailbox(),
                keep_state=output is None and not request.every_step,
                wanted=wanted,
                every_step=request.every_step and output is not None,
                output=output.name if output is not None else None,
            )
            for ids in inputs
        )
        response = v1.EmbedResponse(model=model.name, digest=model.bundle.digest)
        try:
            async with contextlib.aclosing(run_readings(model, readings)) as endings:
                async for ended in endings:
                    for finished in ended:
                        ids = inputs[len(response.embeddings)]
                        response.embeddings.add(
                            tensors=subject.tensors(finished, every_step=request.every_step),
                            step_count=len(ids),
                            unknown_token_count=model.count_unknown(ids),
                            token_ids=ids.tolist() if request.every_step else (),
                        )
        except ModelFailedError as error:
            raise ModelFailedError(f"inputs[{len(response.embeddings)}]: {error}") from error
        return response

    def _check_answer(self, subject: Subject, step_counts: list[int], *, every_step: bool) -> None:
        """Refuse to embed what could not be sent.

        Raises:
            ResponseTooLargeError: it could not.
        """
        size = sum(subject.size(count if every_step else 1) for count in step_counts)
        size += _ID_BYTES * sum(step_counts) if every_step else 0
        limit = self._limits.message_bytes
        if size > limit:
            less = "for the last step only, " if every_step else ""
            raise ResponseTooLargeError(
                "inputs",
                f"a response of about {size} bytes",
                f"at most {limit} are allowed",
                f"Ask {less}for less in one request",
                size=size,
                limit=limit,
            )

    async def Inspect(  # type: ignore[override] # grpc.aio also takes coroutines that write
        self, request: v1.InspectRequest, context: Context
    ) -> None:
        check_size(request, self._limits)
        model = self._models.that_reads(request.model)
        units = inspected_units(request, model)
        self._check_step(units)
        ids = await inspected_ids(request, model, self._limits)
        started = v1.InspectStarted(
            model=model.name,
            digest=model.bundle.digest,
            units=units.to_proto(),
            step_count=len(ids),
            unknown_token_count=model.count_unknown(ids),
        )
        response = v1.InspectResponse(started=started)
        async with contextlib.aclosing(inspect(ids, units, model)) as found:
            async for steps in found:
                for some in grouped(steps, self._message_bytes):
                    response.steps.extend(some)
                    await self._writer.write(context, response)
                    response = v1.InspectResponse()

    def _check_step(self, units: Units) -> None:
        """Refuse to show so many units that one step could not be sent.

        Raises:
            ResponseTooLargeError: it could not.
        """
        size, limit = _STEP_BYTES + _VALUE_BYTES * len(units), self._limits.message_bytes
        if size > limit:
            raise ResponseTooLargeError(
                "units",
                f"{len(units)} units, about {size} bytes a step",
                f"at most {limit} are allowed",
                "Name fewer",
                size=size,
                limit=limit,
            )
