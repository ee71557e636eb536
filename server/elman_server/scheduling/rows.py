"""Sequences that run step by step: each has a row of the engine, those of a beam search have several.

Rows run a few steps at a time, a chunk: few while somebody waits or little is left, many in a steady state, and never
for longer than a newcomer may wait. Rows join and leave between chunks, forced and free steps share a batch, and the
rows in use are kept compact. What happens to most rows in most chunks is done for all of them at once, in numpy.

As long as nobody comes, goes, ends or is to be told something, one chunk follows the other with nothing in between that
can be put off: a turn is then several chunks, and what they have brought is accounted for once. After a run the caches
hold weights and nothing of ours, so that this accounting takes as long as some percent of a run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import structlog
from numpy.typing import NDArray

from elman_server.engine import NOTHING, Chunk, Encoded, Engine, Results
from elman_server.errors import EngineError, ModelFailedError
from elman_server.scheduling.batch import Batch, Outlook
from elman_server.scheduling.host_choice import Choices, log_softmax, reports_of
from elman_server.scheduling.pace import Pace
from elman_server.scheduling.running import INTERNAL, MODEL_FAILED, Emission, Tell
from elman_server.scheduling.sequence import (
    Beams,
    BeamsFinished,
    Event,
    Failed,
    Finished,
    FinishReason,
    Generation,
    Reading,
    Sequence,
    Snapshot,
    Source,
    Tokens,
)
from elman_server.scheduling.turn import Plan, Ran, Turn

_PATIENCE = 0.02  # seconds for which those whose tokens have gathered wait where others are to be let in first
# A turn is planned for so many times the steps that are expected: what has a core for itself takes more of them.
_SLACK = 2
_log = structlog.get_logger(__name__)
_NOT_FINITE = ModelFailedError("the model's output is not finite, so no token can be chosen")


@dataclass(frozen=True)
class _Ending:
    """That a row ends in this chunk.

    Attributes:
        steps: after how many of the chunk's steps.
        tokens: how many of the chunk's tokens it keeps.
        reason: why, if it is a generation that ends well.
        error: why, if not.
        taken_back: whether what the last step has chosen is no token that is kept: the end token, or nothing.
    """

    steps: int
    tokens: int
    reason: FinishReason | None = None
    error: Exception | None = None
    taken_back: bool = False

    @property
    def kept_steps(self) -> int:
        """How many of the chunk's steps the state is wanted after. The last token is never read: one who ends for
        MAX_TOKENS has not got there, and a step whose choice is not kept has read the last one that is."""
        return self.steps - 1 if self.taken_back else self.steps


@dataclass(frozen=True)
class _Branching:
    """How a search goes on.

    Attributes:
        beams: the search.
        sources: which of its beams are continued.
        tokens: by which tokens.
    """

    beams: Beams
    sources: list[int]
    tokens: list[int]


class Rows:
    """The sequences that have rows; implements `Running`.

    Args:
        name: the model's, for the log.
        engine: runs the steps; its rows are these.
        input_name: the step's input that sequences force or feed back; None if the step has no inputs.
        vocabulary_size: of the tokens that are generated; 0 if the model does not generate.
        forbidden_token: a token that is never generated.
        label_output: the output that readings are shown; None if the model has none.
        pace: how long chunks are, and how often tokens are handed on.
    """

    def __init__(
        self,
        name: str,
        engine: Engine,
        *,
        input_name: str | None,
        vocabulary_size: int,
        forbidden_token: int | None = None,
        label_output: str | None,
        pace: Pace,
    ) -> None:
        self._name = name
        self._engine = engine
        self._vocabulary_size = vocabulary_size
        self._forbidden_token = forbidden_token
        self._label_output = label_output
        self._pace = pace
        self._batch = Batch(engine.capacity, input_name, vocabulary_size, forbidden_token)
        self._single_steps = 0  # how many are still to be run one by one, because together they have failed
        self._executor = ThreadPoolExecutor(thread_name_prefix=f"rows {name}")

    @property
    def capacity(self) -> int:
        return self._engine.capacity

    def __len__(self) -> int:
        return len(self._batch)

    @property
    def free(self) -> int:
        return self._engine.capacity - len(self._batch) - self._batch.reserved

    def admit(self, newcomers: list[Sequence], tell: Tell) -> None:
        try:
            able = self._encode(newcomers, tell)
        except Exception:  # A defect of ours; they are in no row yet, where they would be told.
            tell([(sequence.receiver, Failed(INTERNAL)) for sequence in newcomers])
            raise
        for sequence in able:
            self._batch.append(sequence)
        for row, sequence in enumerate(able, len(self._batch) - len(able)):
            # Always written: a row still holds what its last sequence left there.
            self._engine.insert(row, sequence.state, sequence.source.encoded if sequence.source else None)

    def drop_aborted(self) -> None:
        self._release([row for row, sequence in enumerate(self._batch.sequences) if sequence.aborted])

    def take_turn(self, others_wait: bool, tell: Tell, interrupted: Callable[[], bool]) -> None:
        while self._read_ahead() and not interrupted():  # Who has come meanwhile can read with them.
            pass
        plan = self._plan(others_wait)
        looking = self._batch.looking(plan.count)
        self._batch.host.prepare(looking)
        ran = Turn(self._engine, self._pace, plan, interrupted, self._batch.end_tokens).run(self._executor)
        if ran is None:
            self._single_steps = plan.count
            return
        self._single_steps = max(self._single_steps, ran.failed_count)
        outlook = self._batch.outlook(ran.counts)
        results, choices = self._look(looking, plan.chunk, ran)
        endings = self._endings(outlook, results, ran.failures, choices)
        branches = self._search(looking, results, endings)
        self._replay(plan.chunk, ran, results, endings)
        for rows in ran.lanes:
            self._engine.commit(rows)
        self._batch.advance(ran.counts, results.tokens)
        # To tell all takes about as long as it takes a newcomer to its first token.
        self._record(outlook, results, endings, tell, _PATIENCE if interrupted() else 0.0)
        self._release({*endings, *self._branch(branches)})

    def _read_ahead(self) -> bool:
        """Let some who still read their prompts go on with that by themselves for a moment: alone, a few rows take a
        small part of the time that they take beside many, and whoever has come last has its first token the sooner.

        Returns:
            whether they have: then they may be able to go on with fewer steps, as there are runs of few numbers only.
        """
        readers = self._batch.readers
        if readers is None or self._single_steps:
            return False
        now, available = time.perf_counter(), self._engine.step_counts_for(False, NOTHING)
        most = self._batch.most_ahead(readers)
        count = self._pace.count_ahead(len(readers), len(self._batch), most, available, now)
        if not count:
            return False
        try:
            self._engine.read_ahead(readers, self._batch.read_ahead(readers, count))
        except EngineError:
            return False  # Whose fault it is shows as soon as they are run with the others.
        self._pace.note_ahead(len(readers), count, time.perf_counter() - now)
        self._batch.skip(readers, count)
        return True

    def fail(self, error: Exception, tell: Tell) -> None:
        emissions: list[Emission] = []
        for row, sequence in enumerate(self._batch.sequences):
            if sequence.aborted or sequence.ended:
                continue
            tokens = self._batch.hand_on(row, 0.0, 0.0)
            if tokens:
                emissions.append((sequence.receiver, _told(sequence, tokens)))
            sequence.ended = True  # A search has several rows.
            emissions.append((sequence.receiver, Failed(error)))
        self._batch.clear()
        tell(emissions)

    def _encode(self, newcomers: list[Sequence], tell: Tell) -> list[Sequence]:
        """Have the encoder read the sources of those who have one. Those whose source it fails on are told.

        Returns:
            the others.
        """
        unread = {id(source): source for one in newcomers if (source := one.source) and source.encoded is None}
        if not unread:
            return newcomers
        sources = list(unread.values())
        try:
            encoded: list[Encoded | None] = [*self._engine.encode([source.values for source in sources])]
        except EngineError as error:
            # Find out whose fault it is, so that the others go on.
            encoded = [self._encode_alone(source) for source in sources] if len(sources) > 1 else [None]
            _log.warning("the encoder failed", model=self._name, error=str(error), failed=encoded.count(None))
        for source, made in zip(sources, encoded, strict=True):
            source.encoded = made
        failed = [one for one in newcomers if one.source is not None and one.source.encoded is None]
        for sequence in failed:
            sequence.ended = True
        tell([(sequence.receiver, Failed(MODEL_FAILED)) for sequence in failed])
        return [one for one in newcomers if not one.ended]

    def _encode_alone(self, source: Source) -> Encoded | None:
        try:
            return self._engine.encode([source.values])[0]
        except EngineError:
            return None

    def _plan(self, others_wait: bool) -> Plan:
        """How many steps to run at once, and what may follow them."""
        batch = self._batch
        most, exact = self._most_steps(others_wait)
        available = self._engine.step_counts_for(batch.is_filtered, batch.wanted)
        if self._single_steps:
            self._single_steps -= 1
            return Plan(batch.chunk(1), 1, most, exact, available)
        count, quiet = self._pace.step_count(len(batch), most, available, exact=exact), batch.quiet_steps
        if quiet < count:
            if (first := batch.first_token_in) is not None:
                shorter = self._pace.step_count(len(batch), first, available)
                if first <= shorter < count and self._pace.cuts_short(len(batch), time.perf_counter()):
                    count = shorter
            return Plan(batch.chunk(count), count, most, exact, available)
        until = batch.due_at
        if batch.readers is not None:
            until = min(until, time.perf_counter() + self._pace.until_ahead)
        following = self._pace.steps_in(len(batch), _SLACK * (until - time.perf_counter()))
        chunk = batch.chunk(count + max(0, min(quiet, following, most - count, batch.room - count)))
        return Plan(chunk, count, most, exact, available, quiet, until)

    def _most_steps(self, others_wait: bool) -> tuple[int, bool]:
        """How many steps are of use before somebody else's turn comes, and whether more would do harm."""
        left = self._batch.steps_left
        most, exact = int(left.max()), False
        if others_wait:  # For a row: the first that gets free is theirs.
            most, exact = int(left.min()), True
        prompt_left = self._batch.prompt_left
        if prompt_left.all():  # Nobody else is kept waiting if the first who gets a token gets it at once.
            most, exact = min(most, int(prompt_left.min())), True
        kept = self._batch.rows["keeps_state"]
        if kept.any():  # So that a row whose end can be foreseen need not be replayed.
            most, exact = min(most, int(left[kept].min())), True
        logits_in = self._batch.logits_in
        if logits_in is not None:
            most, exact = min(most, logits_in), True
        halts_in = self._batch.halts_in
        if halts_in is not None and halts_in <= 2 * most:
            most, exact = min(most, halts_in), True
        return most, exact

    def _look(self, looking: list[int], chunk: Chunk, ran: Ran) -> tuple[Results, Choices | None]:
        """Have the generations that look at the logits choose, where they do so on the host, and report.

        Returns:
            the results with what they have chosen, and their choices, if they have made any.
        """
        sequences, results = self._batch.sequences, ran.results
        generations = [
            (row, sequence)
            for row in looking
            if isinstance(sequence := sequences[row], Generation) and row not in ran.failures
        ]
        if not generations:
            return results, None
        assert results.logits is not None
        tokens, choices = results.tokens.copy(), None
        choosing = [row for row, generation in generations if generation.params.needs_logits]
        if choosing:
            choices = self._batch.host.choose(choosing, results.logits[choosing], chunk.uniforms[choosing, -1])
            tokens[choosing, -1] = choices.tokens
        reporting = [row for row, generation in generations if generation.report_count is not None]
        if reporting:
            reporters = [_generation(sequences[row]) for row in reporting]
            counts = [generation.report_count or 0 for generation in reporters]
            reports = reports_of(results.logits[reporting], tokens[reporting, -1], counts)
            for generation, report in zip(reporters, reports, strict=True):
                generation.reports.append(report)
        return replace(results, tokens=tokens), choices

    def _search(self, looking: list[int], results: Results, endings: dict[int, _Ending]) -> list[_Branching]:
        """Have the searches that are beyond their prompt go on; where one ends, its rows do."""
        if not self._batch.holds(Beams):
            return []
        searches = {id(found): found for row in looking if isinstance(found := self._batch.sequences[row], Beams)}
        branchings = []
        for beams in searches.values():
            ended = next((endings[row] for row in beams.rows if row in endings), None)
            if ended is None and results.failed[beams.rows].any():
                ended = _Ending(1, 0, error=_NOT_FINITE)
            if ended is None:
                assert beams.search is not None
                assert results.logits is not None
                beams.step_count += len(beams.rows)
                branches = beams.search.advance(self._scores(beams, results.logits))
                if not beams.search.done:
                    branchings.append(_Branching(beams, branches.sources.tolist(), branches.tokens.tolist()))
                    continue
            for row in beams.rows:
                endings[row] = ended or _Ending(1, 0)
        return branchings

    def _scores(self, beams: Beams, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """The log-probabilities of what may follow each beam, [beams, V]."""
        found = log_softmax(logits[beams.rows])
        if self._forbidden_token is not None:
            found[:, self._forbidden_token] = -np.inf
        return found if beams.shaping is None else self._batch.host.shape(beams.rows, found)

    def _branch(self, branchings: list[_Branching]) -> list[int]:
        """Have rows become the continuations that searches go on with; the rows that are not needed any more."""
        surplus: list[int] = []
        for branching in branchings:
            rows, origins = self._batch.branch(branching.beams, branching.sources, branching.tokens)
            self._engine.rearrange(rows, origins)
            surplus += branching.beams.rows[len(rows) :]
        return surplus

    def _endings(
        self, outlook: Outlook, results: Results, failures: dict[int, EngineError], choices: Choices | None
    ) -> dict[int, _Ending]:
        """Which rows end in a chunk, and where in it; not those of searches, unless they fail."""
        sequences = self._batch.sequences
        endings = {
            row: _Ending(int(outlook.left[row]), int(outlook.gained[row]), FinishReason.MAX_TOKENS)
            for row in np.flatnonzero(outlook.left <= outlook.counts).tolist()
            if not isinstance(sequences[row], Beams)
        }
        if results.tokens.size:
            stopping = self._batch.stops(results)
            for row in np.flatnonzero(stopping.any(axis=1)).tolist():
                first, gained = int(outlook.first[row]), int(outlook.gained[row])
                places = np.flatnonzero(stopping[row, first : first + gained])
                if places.size:
                    endings[row] = self._stopped_at(row, int(places[0]), outlook, results)
        if choices is not None:
            self._end_choices(choices, outlook, endings)
        for row in self._batch.stopping:
            self._stop(row, outlook, results, endings)
        for row in np.flatnonzero(self._batch.rows["time_limit"] <= time.perf_counter()).tolist():
            ending = _Ending(int(outlook.counts[row]), int(outlook.gained[row]), FinishReason.TIME_LIMIT)
            endings.setdefault(row, ending)
        for row, failure in failures.items():
            position = int(outlook.position[row])
            _log.error(
                "step failed", model=self._name, position=position, steps=int(outlook.counts[row]), error=str(failure)
            )
            endings[row] = _Ending(0, 0, error=MODEL_FAILED)
        return endings

    def _end_choices(self, choices: Choices, outlook: Outlook, endings: dict[int, _Ending]) -> None:
        """End the rows that could choose nothing on the host, or need choose no more."""
        counts, gained = outlook.counts.tolist(), outlook.gained.tolist()
        found = {row: _Ending(counts[row], gained[row], FinishReason.CONSTRAINT) for row in choices.complete}
        for row in choices.exhausted:
            found[row] = _Ending(counts[row], gained[row] - 1, FinishReason.CONSTRAINT, taken_back=True)
        for row, error in choices.errors.items():
            found[row] = _Ending(counts[row], gained[row] - 1, error=ModelFailedError(error))
        for row, ending in found.items():
            if row not in endings or endings[row].reason is FinishReason.MAX_TOKENS:
                endings[row] = ending

    def _stop(self, row: int, outlook: Outlook, results: Results, endings: dict[int, _Ending]) -> None:
        """End a row whose new tokens complete a stop sequence."""
        sequence, known = _generation(self._batch.sequences[row]), endings.get(row)
        assert sequence.stop is not None
        first, kept = int(outlook.first[row]), int(outlook.gained[row]) if known is None else known.tokens
        count = sequence.stop.feed(results.tokens[row, first : first + kept].tolist())
        if count is not None:
            endings[row] = _Ending(first + count, count, FinishReason.STOP_SEQUENCE)

    def _stopped_at(self, row: int, tokens: int, outlook: Outlook, results: Results) -> _Ending:
        """The end of a row that keeps so many of the chunk's tokens; the next is its end token, or none at all."""
        step = int(outlook.first[row]) + tokens
        if not results.failed[row, step]:
            return _Ending(step + 1, tokens, FinishReason.END_TOKEN, taken_back=True)
        _log.error("no token can be chosen", model=self._name, position=int(outlook.position[row]) + step)
        return _Ending(step + 1, tokens, error=_NOT_FINITE)

    def _replay(self, chunk: Chunk, ran: Ran, results: Results, endings: dict[int, _Ending]) -> None:
        """Bring the rows that ended before the last run did, and whose state is wanted, to where they ended."""
        for row, ending in endings.items():
            sequence = self._batch.sequences[row]
            wanted = sequence.keep_state and not sequence.aborted and ending.error is None
            if wanted and ending.kept_steps < ran.counts[row]:
                committed = int(ran.committed[row])
                try:
                    inputs = self._batch.read_inputs(row, chunk, results.tokens, committed, ending.kept_steps)
                    self._engine.replay(row, inputs)
                except EngineError as failure:
                    _log.error("replay failed", model=self._name, steps=ending.steps, error=str(failure))
                    endings[row] = _Ending(ending.steps, ending.tokens, error=MODEL_FAILED)

    def _record(
        self, outlook: Outlook, results: Results, endings: dict[int, _Ending], tell: Tell, patience: float
    ) -> None:
        """Give readings what they are shown and generations their tokens; tell whoever has been due for `patience`
        seconds, and whoever ends."""
        batch, emissions, now = self._batch, list[Emission](), time.perf_counter()
        for row, ending in endings.items():
            outlook.gained[row] = ending.tokens
        if results.tokens.size:
            batch.gather(outlook, results.tokens)
        if batch.holds(Reading) and (self._label_output is not None or batch.wanted != NOTHING):
            for row, sequence in enumerate(batch.sequences):
                steps = endings[row].steps if row in endings else int(outlook.counts[row])
                if isinstance(sequence, Reading) and steps:
                    sequence.show(results, row, steps, self._label_output, last=row in endings)
        interval = self._pace.interval(len(batch))
        snapshots = set(np.flatnonzero(batch.rows["position"] >= batch.rows["snapshot_at"]).tolist())
        told = {*batch.due(now - patience, self._engine.step_counts_for(False, NOTHING)[-1]), *snapshots, *endings}
        # To write to all takes a while, and whoever waits for its first token has been due for the longest.
        for row in sorted(told, key=batch.rows["due"].__getitem__):
            sequence = batch.sequences[row]
            tokens = batch.hand_on(row, now, interval)
            if sequence.aborted or sequence.ended:
                continue
            if tokens:
                emissions.append((sequence.receiver, _told(sequence, tokens)))
            if row in snapshots and row not in endings:
                emissions.append((sequence.receiver, Snapshot(batch.take_snapshot(row), self._engine.extract(row))))
            if row in endings:
                sequence.ended = True
                event = self._last_event(row, sequence, endings[row], int(outlook.position[row]))
                emissions.append((sequence.receiver, event))
        if emissions:
            started = time.perf_counter()
            tell(emissions)
            self._pace.note_telling(len(emissions), time.perf_counter() - started)

    def _last_event(self, row: int, sequence: Sequence, ending: _Ending, position: int) -> Event:
        if ending.error is not None:
            return Failed(ending.error)
        state = self._engine.extract(row) if sequence.keep_state else None
        if isinstance(sequence, Reading):
            return sequence.finished(state)
        if isinstance(sequence, Beams):
            assert sequence.search is not None
            cut_short = ending.reason is FinishReason.TIME_LIMIT
            return BeamsFinished(tuple(sequence.search.results()), cut_short, sequence.step_count, sequence.begun)
        assert ending.reason is not None
        steps = position + ending.steps - sequence.position
        return Finished(ending.reason, position + ending.kept_steps, state, steps, sequence.begun)

    def _release(self, leaving: Collection[int]) -> None:
        """Free rows, the highest first, so that the last row in use can always fill the hole."""
        for row in sorted(leaving, reverse=True):
            last = self._batch.remove(row)
            if last != row:
                self._engine.move(last, row)


def _generation(sequence: Sequence) -> Generation:
    assert isinstance(sequence, Generation)
    return sequence


def _told(sequence: Sequence, tokens: tuple[int, ...]) -> Tokens:
    """Tokens that are handed on, with what is reported of them; of an end token nothing is."""
    generation = _generation(sequence)
    reports = tuple(generation.reports[: len(tokens)])
    generation.reports.clear()
    return Tokens(tokens, reports)
