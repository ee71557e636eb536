"""The rows in use: one record a row, kept compact, so that what is done for all rows at once is done in numpy.

A row's record says where its sequence stands and holds what is needed to go on: the last token, random numbers ahead
of their use, tokens that wait to be handed on. Nothing here runs a model.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from elman_server.decoding import GREEDY_TEMPERATURE, LEAST_UNIFORM, UniformStream
from elman_server.decoding.beams import BeamSearch
from elman_server.engine import FREE, NOTHING, Arrays, Chunk, Results, Wanted, is_filtered
from elman_server.scheduling.host_choice import HostChoice
from elman_server.scheduling.sequence import Beams, Generation, Sequence

# Random numbers are drawn for so many positions at a time: to begin costs as much as to draw thousands.
_AHEAD = 1024
_ROOM = 256  # for tokens to gather; more than the steps of a chunk
_NO_TOKEN = -1
_HOTTEST = 1e30  # Divided by it, every finite logit is as good as 0; by infinity, a forbidden one were no number.

_NEVER = np.iinfo(np.int64).max

_RECORD = np.dtype(
    [
        ("position", np.int64),  # steps taken since the sequence was empty
        ("forced_end", np.int64),  # where the forced steps end
        ("end", np.int64),  # where the sequence ends at the latest
        ("generates", np.bool_),
        ("keeps_state", np.bool_),  # at its end, to go on from
        ("snapshot_at", np.int64),  # the position from which on its state is to be told
        ("halt_at", np.int64),  # a position at which a run ends, because the state just there is wanted
        ("last_token", np.int64),  # what the next free step reads
        ("end_token", np.int64),  # _NO_TOKEN where there is none
        ("temperature", np.float32),
        ("top_k", np.int64),
        ("top_p", np.float32),
        ("min_p", np.float32),
        ("greedy", np.bool_),
        ("uniforms_start", np.int64),  # the position of the first random number that is kept
        ("gathered_count", np.int64),  # how many tokens wait to be handed on
        ("interval", np.float64),  # seconds between handing on; not a number: the scheduler's own
        ("due", np.float64),  # when what has gathered is to be handed on
        ("looks_at_logits", np.bool_),  # at every step at which it chooses
        ("time_limit", np.float64),  # when it ends with what there is
        ("stops", np.bool_),  # at stop sequences
    ]
)


@dataclass
class Outlook:
    """What a chunk brings its rows, [rows] each.

    Attributes:
        counts: the number of its steps.
        position: the steps taken before it.
        left: the steps that were left before it.
        first: the index of the first step whose choice counts.
        gained: how many choices count.
    """

    counts: NDArray[np.int64]
    position: NDArray[np.int64]
    left: NDArray[np.int64]
    first: NDArray[np.int64]
    gained: NDArray[np.int64]


class Batch:
    """Rows 0 to `len(batch) - 1`, each with its sequence.

    Args:
        capacity: the number of rows.
        input_name: the step's input; None if it has none.
        vocabulary_size: of the tokens that are generated; 0 if none are.
        forbidden_token: a token that is never generated.

    Attributes:
        host: what is known of the rows that choose on the host.
        wanted: what any row wants to be told beside tokens and labels.
    """

    def __init__(
        self, capacity: int, input_name: str | None, vocabulary_size: int, forbidden_token: int | None = None
    ) -> None:
        self.sequences: list[Sequence] = []
        self.host = HostChoice(vocabulary_size, forbidden_token)
        self._input_name = input_name
        self._vocabulary_size = vocabulary_size
        self._all = np.zeros(capacity, _RECORD)
        # Not in the record: then the records of many rows are few lines of the cache, which a run has just emptied.
        self._uniforms_ahead = np.zeros((capacity, _AHEAD), np.float32)
        self._gathered = np.zeros((capacity, _ROOM), np.int32)
        self._streams: list[UniformStream | None] = []
        self._wants: Counter[Wanted] = Counter()
        self._kinds: Counter[type[Sequence]] = Counter()
        self.wanted = NOTHING

    def __len__(self) -> int:
        return len(self.sequences)

    @property
    def rows(self) -> NDArray[Any]:
        """The records of the rows in use."""
        return self._all[: len(self.sequences)]

    def append(self, sequence: Sequence) -> int:
        """Give the next row to a sequence; the row."""
        row = len(self.sequences)
        record = np.zeros((), _RECORD)
        record["position"] = sequence.position
        record["forced_end"] = sequence.position + len(sequence.forced)
        record["end"] = sequence.position + sequence.longest
        record["snapshot_at"], record["halt_at"] = _next_snapshot(sequence, sequence.position)
        record["keeps_state"] = sequence.keep_state
        record["end_token"] = _NO_TOKEN
        record["temperature"], record["top_k"], record["top_p"] = 1, self._vocabulary_size, 1
        record["looks_at_logits"], record["time_limit"] = sequence.wanted.logits, np.inf
        stream: UniformStream | None = None
        if isinstance(sequence, Generation):
            params = sequence.params
            record["generates"] = True
            record["stops"] = sequence.stop is not None
            record["greedy"] = params.temperature == 0
            record["temperature"] = min(max(params.temperature, GREEDY_TEMPERATURE), _HOTTEST)
            record["interval"] = np.nan if sequence.interval is None else sequence.interval
            record["uniforms_start"] = -_AHEAD
            if params.end_token is not None:
                record["end_token"] = params.end_token
            if not params.needs_logits:  # Else the token that the graph chooses is of no use.
                record["top_k"] = self._vocabulary_size if params.top_k is None else params.top_k
                record["top_p"], record["min_p"] = params.top_p, params.min_p
            stream = UniformStream(params.seed)
        if isinstance(sequence, Generation | Beams) and sequence.time_limit is not None:
            record["time_limit"] = sequence.time_limit
        if isinstance(sequence, Beams):
            sequence.rows.append(row)
            sequence.search = BeamSearch(sequence.params, self._vocabulary_size)
        self._all[row] = record
        self.sequences.append(sequence)
        self._streams.append(stream)
        self._count(sequence, 1)
        self.host.append(row, sequence)
        return row

    def branch(self, beams: Beams, sources: list[int], tokens: list[int]) -> tuple[list[int], list[int]]:
        """A search goes on: its first rows, and new ones if it needs them, continue some of its rows by a token each.

        Args:
            beams: the search.
            sources: which of its beams are continued.
            tokens: by which tokens.

        Returns:
            the rows that go on, and for each the row that it continues.
        """
        origins = [beams.rows[source] for source in sources]
        while len(beams.rows) < len(sources):
            row = len(self.sequences)
            self._all[row] = self._all[beams.rows[0]]
            self.sequences.append(beams)
            self._streams.append(None)
            self._count(beams, 1)
            beams.rows.append(row)
        rows = beams.rows[: len(sources)]
        self._all["last_token"][rows] = tokens
        if beams.shaping is not None:
            self.host.branch(beams, rows, origins, tokens)
        return rows, origins

    def remove(self, row: int) -> int:
        """Free a row: the last one takes its place; the row that has moved."""
        last = len(self.sequences) - 1
        self._count(self.sequences[row], -1)
        self.host.remove(row)
        leaving, moving = self.sequences[row], self.sequences[last]
        if isinstance(leaving, Beams):
            leaving.rows.remove(row)
        if row != last:
            for values in (self._all, self._uniforms_ahead, self._gathered):
                values[row] = values[last]
            self.sequences[row] = moving
            self._streams[row] = self._streams[last]
            self.host.move(last, row)
            if isinstance(moving, Beams):
                moving.rows[moving.rows.index(last)] = row
        self.sequences.pop()
        self._streams.pop()
        return last

    def clear(self) -> None:
        """Free all rows."""
        self.sequences.clear()
        self._streams.clear()
        self._wants.clear()
        self._kinds.clear()
        self.wanted = NOTHING
        self.host.clear()

    def _count(self, sequence: Sequence, change: int) -> None:
        """A sequence has so many rows more."""
        self._kinds[type(sequence)] += change
        self._wants[sequence.wanted] += change
        self.wanted = NOTHING
        for each in +self._wants:
            self.wanted |= each

    def holds(self, kind: type[Sequence]) -> bool:
        """Whether any row is of a kind of sequence."""
        return self._kinds[kind] > 0

    @property
    def reserved(self) -> int:
        """How many rows are kept free for searches that will need them."""
        if not self.holds(Beams):
            return 0
        searches = {id(sequence): sequence for sequence in self.sequences if isinstance(sequence, Beams)}
        return sum(search.row_count - len(search.rows) for search in searches.values())

    @property
    def steps_left(self) -> NDArray[np.int64]:
        """How many steps each row can still take, [rows]."""
        rows = self.rows
        left: NDArray[np.int64] = rows["end"] - rows["position"]
        return left

    @property
    def is_filtered(self) -> bool:
        """Whether any row may choose only among its most probable tokens."""
        rows = self.rows
        return is_filtered(rows["top_k"], rows["top_p"], rows["min_p"], self._vocabulary_size)

    @property
    def prompt_left(self) -> NDArray[np.int64]:
        """How many forced steps each row still has, [rows]."""
        rows = self.rows
        left: NDArray[np.int64] = np.maximum(rows["forced_end"] - rows["position"], 0)
        return left

    @property
    def first_token_in(self) -> int | None:
        """After how many steps some row generates its first token; None if none still reads its prompt."""
        rows, left = self.rows, self.prompt_left
        left = left[rows["generates"] & (left > 0)]
        return int(left.min()) if left.size else None

    @property
    def halts_in(self) -> int | None:
        """After how many steps at the latest a run has to end, because a row's state just there is wanted."""
        rows = self.rows
        least = int((rows["halt_at"] - rows["position"]).min())
        return least if least < _NEVER // 2 else None

    @property
    def logits_in(self) -> int | None:
        """After how many steps at the latest a run has to end, because a row looks at the logits there."""
        rows = self.rows
        if not rows["looks_at_logits"].any():
            return None
        prompt_left = self.prompt_left[rows["looks_at_logits"]]
        return max(int(prompt_left.min()), 1)

    @property
    def readers(self) -> range | None:
        """Rows that follow each other and have more than one token of their prompt to read, while others generate: as
        many as there are in a row. None: there are none."""
        rows = self.rows
        reads = rows["generates"] & (rows["position"] + 1 < rows["forced_end"])
        if not reads.any() or reads.all() or self._kinds[Beams]:
            return None
        edges = np.flatnonzero(np.diff(reads, prepend=False, append=False))
        starts, stops = edges[::2], edges[1::2]
        longest = int(np.argmax(stops - starts))
        return range(int(starts[longest]), int(stops[longest]))

    def most_ahead(self, readers: range) -> int:
        """How many steps they can take before one comes to the last token of its prompt, or to where its state is
        wanted: those are steps that are taken with the others."""
        rows = self.rows[readers.start : readers.stop]
        return int((np.minimum(rows["forced_end"], rows["halt_at"]) - 1 - rows["position"]).min())

    def read_ahead(self, readers: range, count: int) -> Arrays:
        """What they read in the next `count` steps, [rows, count]."""
        starts = [int(self.rows["position"][row]) - self.sequences[row].position for row in readers]
        parts = [self.sequences[row].forced[at : at + count] for row, at in zip(readers, starts, strict=True)]
        assert self._input_name is not None
        return {self._input_name: np.stack(parts)}

    def skip(self, readers: range, count: int) -> None:
        """They have taken so many steps."""
        self.rows["position"][readers.start : readers.stop] += count

    def looking(self, count: int) -> list[int]:
        """The rows that look at the logits after so many steps."""
        rows = self.rows
        found = rows["looks_at_logits"] & (rows["position"] + count >= rows["forced_end"])
        return np.flatnonzero(found).tolist()

    @property
    def quiet_steps(self) -> int:
        """For how many steps nothing can befall any row that has to be seen to, unless somebody comes or goes or a row
        chooses its end token; what it chooses meanwhile is taken care of later."""
        rows = self.rows
        if self.wanted != NOTHING or self._kinds[Generation] < len(rows) or rows["stops"].any():
            return 0
        until = np.minimum(np.minimum(rows["end"], rows["snapshot_at"]), rows["halt_at"])
        # Whoever comes to the end of its prompt is told its first token at once.
        until = np.where(rows["position"] < rows["forced_end"], np.minimum(until, rows["forced_end"]), until)
        return int((until - rows["position"]).min()) - 1

    @property
    def room(self) -> int:
        """For how many more tokens of every row there is room."""
        return _ROOM - int(self.rows["gathered_count"].max())

    @property
    def due_at(self) -> float:
        """When the next row is to be told something, or its time is up."""
        rows = self.rows
        due = np.where(rows["position"] < rows["forced_end"], np.inf, rows["due"])
        return float(np.minimum(due, rows["time_limit"]).min())

    @property
    def stopping(self) -> list[int]:
        """The rows that look for stop sequences."""
        return np.flatnonzero(self.rows["stops"]).tolist()

    @property
    def end_tokens(self) -> NDArray[np.int64]:
        """The token that each row ends at, [rows, 1]; no token's id where there is none."""
        ends: NDArray[np.int64] = self.rows["end_token"][:, None]
        return ends

    def stops(self, results: Results) -> NDArray[np.bool_]:
        """Where a row has chosen its end token, or could choose nothing, if the choice counts: [rows, steps]."""
        found: NDArray[np.bool_] = results.failed | (results.tokens == self.end_tokens)
        return found

    def chunk(self, count: int) -> Chunk:
        """The next `count` steps of every row. A row that ends before is fed what does no harm."""
        rows = self.rows
        first = self.sequences[0].forced
        inputs = np.zeros((len(rows), count, *first.shape[1:]), first.dtype)
        if self._vocabulary_size:
            inputs[:] = FREE
            inputs[:, 0] = rows["last_token"]
        wanted = self.wanted
        targets = np.full((len(rows), count), FREE) if wanted.log_probabilities else None
        for row in np.flatnonzero(rows["position"] < rows["forced_end"]).tolist():
            sequence = self.sequences[row]
            start = int(rows["position"][row]) - sequence.position
            part = sequence.forced[start : start + count]
            inputs[row, : len(part)] = part
            if targets is not None and sequence.targets is not None:
                targets[row, : len(part)] = sequence.targets[start : start + count]
        return Chunk(
            {} if self._input_name is None else {self._input_name: inputs},
            self._uniforms(count),
            rows["temperature"],
            rows["top_k"],
            rows["top_p"],
            rows["min_p"],
            self.is_filtered,
            wanted,
            targets,
        )

    def _uniforms(self, count: int) -> NDArray[np.float32]:
        """The random numbers of the choices after the next `count` steps: that after a step depends on the number of
        steps taken by then."""
        rows = self.rows
        first = rows["position"] + 1
        offsets = first - rows["uniforms_start"]
        missing = (offsets > _AHEAD - count) & (rows["forced_end"] < first + count)
        for row in np.flatnonzero(missing).tolist():
            stream = self._streams[row]
            if stream is not None:
                rows["uniforms_start"][row], offsets[row] = first[row], 0
                drawn = np.maximum(stream.take(int(first[row]), _AHEAD), LEAST_UNIFORM)
                self._uniforms_ahead[row] = LEAST_UNIFORM if rows["greedy"][row] else drawn
        # Rows that do not choose in this chunk get what happens to be there.
        taken: NDArray[np.float32] = self._uniforms_ahead[
            np.arange(len(rows))[:, None], np.minimum(offsets, _AHEAD - count)[:, None] + np.arange(count)
        ]
        return taken

    def outlook(self, counts: NDArray[np.int64]) -> Outlook:
        """What so many steps, [rows], bring each row as far as nothing ends it early."""
        rows, left = self.rows, self.steps_left
        # The choice after the last forced step is the first that counts.
        first = np.maximum(rows["forced_end"] - 1 - rows["position"], 0)
        gained = np.maximum(np.minimum(left, counts) - first, 0) * rows["generates"]
        return Outlook(counts, rows["position"].copy(), left, first, gained)

    def advance(self, counts: NDArray[np.int64], tokens: NDArray[np.int64]) -> None:
        """Every row has taken so many steps, [rows], and chosen `tokens`, [rows, steps]."""
        rows = self.rows
        rows["position"] += counts
        if tokens.size:
            last = tokens[np.arange(len(rows)), np.maximum(counts, 1) - 1]
            rows["last_token"] = np.where(counts > 0, last, rows["last_token"])

    def gather(self, outlook: Outlook, tokens: NDArray[np.int64]) -> None:
        """Keep the tokens that rows have gained until they are handed on."""
        rows = self.rows
        steps = np.arange(tokens.shape[1])
        first = outlook.first[:, None]
        at, step = np.nonzero((steps >= first) & (steps < first + outlook.gained[:, None]))
        self._gathered[at, (rows["gathered_count"] - outlook.first)[at] + step] = tokens[at, step]
        rows["gathered_count"] += outlook.gained

    def due(self, now: float, room: int) -> list[int]:
        """Those rows whose tokens are to be handed on now, because it is time or because there is
        no room for as many as `room` more."""
        rows = self.rows
        full = rows["gathered_count"] > _ROOM - room
        found: list[int] = np.flatnonzero((rows["gathered_count"] > 0) & ((rows["due"] <= now) | full)).tolist()
        return found

    def hand_on(self, row: int, now: float, interval: float) -> tuple[int, ...]:
        """Take out the tokens that a row has gathered.

        Args:
            row: the row.
            now: the time.
            interval: seconds between two times, which are the same for all sequences that have no interval of their
                own: to write to all of them at once costs less than to write to a few of them again and again.
        """
        record = self._all[row]
        tokens = tuple(self._gathered[row, : record["gathered_count"]].tolist())
        record["gathered_count"] = 0
        if np.isnan(record["interval"]):
            record["due"] = (now // interval + 1) * interval if interval else now
        else:
            record["due"] = now + record["interval"]
        return tokens

    def take_snapshot(self, row: int) -> int:
        """The position of a row whose state is being told; the next time is put off."""
        record = self._all[row]
        position = int(record["position"])
        record["snapshot_at"], record["halt_at"] = _next_snapshot(self.sequences[row], position)
        return position

    def read_inputs(self, row: int, chunk: Chunk, tokens: NDArray[np.int64], start: int, stop: int) -> Arrays:
        """What a row has read in some steps of a chunk, as forced inputs, to replay them."""
        if self._input_name is None:
            return {}
        inputs = np.array(chunk.inputs[self._input_name][row, start:stop])
        if self._vocabulary_size:
            free = np.flatnonzero(inputs == FREE)
            inputs[free] = tokens[row, start + free - 1]
        return {self._input_name: inputs}


def _next_snapshot(sequence: Sequence, position: int) -> tuple[int, int]:
    """From which position on a sequence's state is to be told, and which position no run may pass by."""
    if sequence.snapshot_steps is None:
        return _NEVER, _NEVER
    following = position + sequence.snapshot_steps
    if not (isinstance(sequence, Generation) and sequence.snapshots_prompt):
        return following, _NEVER
    last = sequence.position + len(sequence.forced) - 1
    return (min(following, last), last) if position < last else (_NEVER, _NEVER)
