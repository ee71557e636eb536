"""The columns and legends of each table, and the performance targets."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.cases.decoding import HALF_CONSTRAINED
from benchmarks.cases.measurement import CALLS
from benchmarks.cases.session_prefixes import CACHE_MIB
from benchmarks.cases.session_stores import CHECKPOINT
from benchmarks.report.tables import Column, Rows, Target, figure, figures

_OTHERS = Column("others", figure("others_share_of_cores", ".0%"))
_CASE = (Column("S", figure("streams", "d")), Column("", figure("precision", "")))
THROUGHPUT_COLUMNS = (
    *_CASE,
    Column("tokens/s", figure("tokens_per_s")),
    Column("share of U", figure("share_of_raw", ".2f")),
    Column("lowest / highest", figures(".2f", "share_of_raw_lowest", "share_of_raw_highest")),
    Column("U tokens/s", figure("raw_tokens_per_s")),
    Column("limit", figure("limit_tokens_per_s")),
    Column("tokens per\nmessage", figure("tokens_per_message", ".1f")),
    _OTHERS,
)
LATENCY_COLUMNS = (
    *_CASE,
    Column("first token ms\np50 / p99", figures(".1f", "ttft_p50_ms", "ttft_p99_ms")),
    Column("p99 /\nU's prompt", figure("ttft_ratio", ".2f")),
    Column("gap ms\np50 / p99", figures(".2f", "gap_p50_ms", "gap_p99_ms")),
    Column("CPU us per token\nserver / U", figures(".1f", "server_cpu_us_per_token", "raw_cpu_us_per_token")),
    Column("ratio", figure("cpu_ratio", ".2f")),
    Column("peak MiB", figure("peak_memory_mib")),
)
THROUGHPUT_LEGEND = """\
S streams start together. U: onnxruntime alone, the plain step, one run per step on all cores, numpy sampling, no
network. Limit: the matrix products alone. Others: share of the cores used by other processes during the measurement.
Medians over the repeats; shares and ratios are relative to U in the same repeat."""
LATENCY_LEGEND = """\
First token: measured from sending the request. Gap: time between two successive messages of one stream that carry
tokens; a message may carry several. CPU: of the whole process; onnxruntime's threads in U spin while waiting."""

CASE_COLUMNS = {
    "poisson": (
        Column("", figure("precision", "")),
        Column("requests/s", figure("requests_per_s", ".1f")),
        Column("running", figure("mean_concurrency", ".0f")),
        Column("tokens/s", figure("tokens_per_s")),
        Column("lock step", figure("lock_step_tokens_per_s")),
        Column("first token ms\np50 / p99", figures(",.0f", "ttft_p50_ms", "ttft_p99_ms")),
        Column("lock step\np50 / p99", figures(",.0f", "lock_step_ttft_p50_ms", "lock_step_ttft_p99_ms")),
        Column("gap ms\np50 / p99", figures(".1f", "gap_p50_ms", "gap_p99_ms")),
        Column("lock step\nuseful steps", figure("lock_step_useful_share", ".0%")),
        _OTHERS,
    ),
    "newcomer": (
        Column("", figure("precision", "")),
        Column("first token ms\np50 / p99", figures(".1f", "ttft_p50_ms", "ttft_p99_ms")),
        Column("allowed ms", figure("allowed_ms", ".1f")),
        Column("share of allowed\np50 / p99", figures(".2f", "p50_ratio", "p99_ratio")),
        Column("server's step ms", figure("step_ms", ".2f")),
        _OTHERS,
    ),
    "long prompt": (
        Column("", figure("precision", "")),
        Column("gap ms\np50 / p99", figures(".2f", "gap_p50_ms", "gap_p99_ms")),
        Column("usual gap ms\np50 / p99", figures(".2f", "usual_gap_p50_ms", "usual_gap_p99_ms")),
        Column("p99 /\nusual p99", figure("gap_p99_ratio", ".2f")),
        _OTHERS,
    ),
    "lone": (
        Column("", figure("precision", "")),
        Column("first token ms\np50 / p99", figures(".1f", "ttft_p50_ms", "ttft_p99_ms")),
        Column("all tokens ms\np50 / p99", figures(".1f", "whole_p50_ms", "whole_p99_ms")),
        Column("U's steps ms", figure("raw_ms", ".1f")),
        Column("p50 /\nU's", figure("p50_ratio", ".2f")),
        _OTHERS,
    ),
}
CASE_TITLES = {
    "poisson": "Random arrivals of streams of different lengths",
    "newcomer": "A new request while 63 streams are running",
    "long prompt": "64 streams, one of them still prefilling a prompt of 16,384 tokens",
    "lone": "An occasional client on an idle server",
}
CASE_LEGENDS = {
    "poisson": """\
Prompts of 4 to 128 tokens, 16 to 512 generated. 64 streams run at the start; further requests arrive at the rate at
which a server with 64 running streams finishes them. Lock step: the same requests in static batches of at most 64,
each of which runs until its longest stream is finished, computed from U's step times, without network or
scheduling.""",
    "newcomer": "Allowed: two chunks, 5 ms each by default, and one server step per prompt token.",
    "long prompt": "Gaps of the other 63 streams; usual: gaps of 64 equal streams.",
    "lone": """\
Prompts of 32 tokens, 64 generated, one stream every 40 to 80 ms; the server is idle between two streams. U has no
network, and its threads spin continuously.""",
}

GROWTH_COLUMNS = (
    Column("factor", figure("factor", "")),
    Column("value", figure("value", ",d")),
    Column("", figure("precision", "")),
    Column("tokens/s", figure("tokens_per_s")),
    Column("share of U", figure("share_of_raw", ".2f")),
    Column("U tokens/s", figure("raw_tokens_per_s")),
    Column("limit", figure("limit_tokens_per_s")),
    Column("first token\nms p50", figure("ttft_p50_ms", ",.0f")),
    Column("us per row\nand step", figure("us_per_row_step", ",.1f")),
    Column("products", figure("products_us", ",.1f")),
    Column("rest of\nU's step", figure("rest_of_step_us", ",.1f")),
    Column("edge", figure("edge_us", ",.1f")),
    _OTHERS,
)
GROWTH_LEGEND = """\
One factor varies at a time around 16 streams, 512 hidden units, a vocabulary of 96 tokens and prompts of 32. Per row
and step: per token of one stream, read or generated. Edge: sampling, scheduling, network and clients, less the time
saved by a better graph than U's."""

DECODING_COLUMNS = (
    Column("", figure("precision", "")),
    Column("decoding", figure("way", "")),
    Column("tokens/s", figure("tokens_per_s")),
    Column("share of\nplain sampling", figure("share_of_plain", ".2f")),
    Column("lowest / highest", figures(".2f", "share_of_plain_lowest", "share_of_plain_highest")),
    Column("CPU us\nper token", figure("server_cpu_us_per_token", ".1f")),
    _OTHERS,
)
DECODING_LEGEND = """\
64 rows start together; prompts of 32, 256 tokens generated by each. Shares are relative to rounds of plain sampling
that alternate with the others on the same server; for beam search, the tokens of every beam count."""

TRANSLATION_COLUMNS = (
    Column("", figure("precision", "")),
    Column("per call", figure("calls", "")),
    Column("translations/s", figure("translations_per_s")),
    Column("onnxruntime\nalone", figure("raw_translations_per_s")),
    Column("share of\nonnxruntime", figure("share_of_raw", ".2f")),
    Column("lowest / highest", figures(".2f", "share_of_raw_lowest", "share_of_raw_highest")),
    Column("onnxruntime\nencoder share", figure("raw_encoder_share", ".2f")),
    Column("latency ms\np50 / p99", figures(".0f", "latency_p50_ms", "latency_p99_ms")),
    Column("CPU ms per\ntranslation", figure("server_cpu_ms_per_translation", ".2f")),
    _OTHERS,
)
TRANSLATION_LEGEND = """\
64 translations in flight; the next one is requested as soon as one is finished: each in a separate call (Generate), or
all in one call (GenerateMany). Sources of 6 to 24 tokens, 20 tokens decoded greedily. Onnxruntime alone encodes the
same 64 sources as one batch and decodes all of them in lock step."""

TREE_COLUMNS = (
    Column("clients", figure("clients", "d")),
    Column("units", figure("hidden", "d")),
    Column("per call", figure("calls", "")),
    Column("trees/s", figure("trees_per_second")),
    Column("nodes/s", figure("nodes_per_second")),
    Column("share of\nonnxruntime alone", figure("share_of_raw", ".2f")),
    Column("lowest / highest", figures(".2f", "share_of_raw_lowest", "share_of_raw_highest")),
    Column("onnxruntime\nnodes/s", figure("raw_nodes_per_second")),
    Column("latency ms\np50 / p99", figures(".1f", "p50_ms", "p99_ms")),
    Column("CPU us per node\nserver / alone", figures(".1f", "server_cpu_us_per_node", "raw_cpu_us_per_node")),
    _OTHERS,
)
TREE_LEGEND = """\
Binary parse trees of 5 to 40 words through a binary Tree-LSTM; 10,000 words, embeddings of twice the hidden size. Each
client sends its next tree when the previous one has been answered, each in a separate call (Classify) or all in one
call (ClassifyMany). Onnxruntime alone: batches of as many trees as there are clients, level by level, prepared in
advance, the plain step, all cores, no network. All measurements alternate."""

SESSION_COLUMNS = {
    "durability": (
        Column("", figure("precision", "")),
        Column("sessions", figure("store", "")),
        Column("tokens/s", figure("tokens_per_s")),
        Column("share of\nno sessions", figure("share_of_plain", ".3f")),
        Column("lowest / highest", figures(".2f", "share_of_plain_lowest", "share_of_plain_highest")),
        Column("first token ms\np50 / p99", figures(".0f", "ttft_p50_ms", "ttft_p99_ms")),
        Column("gap ms\np50 / p99", figures(".0f", "gap_p50_ms", "gap_p99_ms")),
        Column("CPU us\nper token", figure("server_cpu_us_per_token", ".1f")),
        _OTHERS,
    ),
    "idle": (
        Column("store", figure("store", "")),
        Column("sessions", figure("sessions", ",d")),
        Column("state\nbytes", figure("state_bytes", ",d")),
        Column("memory bytes\nper fork", figure("memory_bytes_of_fork")),
        Column("memory bytes\nbeyond state", figure("memory_bytes_beyond_state")),
        Column("file bytes\nbeyond state", figure("file_bytes_beyond_state")),
        Column("creation s", figure("seconds_to_make", ".0f")),
        Column("first call ms\np50 / p99", figures(".2f", "wake_p50_ms", "wake_p99_ms")),
        Column("second call ms\np50 / p99", figures(".2f", "again_p50_ms", "again_p99_ms")),
        Column("no session ms\np50 / p99", figures(".2f", "plain_p50_ms", "plain_p99_ms")),
        _OTHERS,
    ),
    "prefix": (
        Column("", figure("precision", "")),
        Column("cache MiB", figure("prefix_cache", "d")),
        Column("prompts", figure("pairs", "d")),
        Column("first request ms\np50 / p99", figures(",.1f", "first_p50_ms", "first_p99_ms")),
        Column("repeated ms\np50 / p99", figures(",.1f", "again_p50_ms", "again_p99_ms")),
        Column("repeated /\nfirst, p50", figure("again_ratio", ".4f")),
        Column("cached\ntokens", figure("cached_tokens", ",d")),
        _OTHERS,
    ),
}
SESSION_TITLES = {
    "durability": "64 streams, each on a separate session",
    "idle": "Idle sessions",
    "prefix": "Time to first token of a prompt of 4,096 tokens",
}
SESSION_LEGENDS = {
    "durability": """\
Streams start together; prompts of 32, 256 tokens generated; every call has a request id and a new, empty session.
Medians over the repeats; shares are relative to streams without sessions that alternate with them on the same server.
CPU: of the server and of Redis.""",
    "idle": """\
Bytes per session. All sessions hold 32 tokens and are forks that share their state in memory; the memory of a session
with a state of its own was measured with a tenth as many imported sessions. First call: a complete call for one token
on a random idle session, one call at a time; second call: another call on the same session. With SQLite, the calls go
to a server that keeps 1 MiB of sessions in memory (the file may be in the page cache). No session: a call for one
token with a prompt of one.""",
    "prefix": "Random prompts, one call at a time; every prompt is sent twice.",
}


def serving_targets() -> list[Target]:
    """Return the targets of the main table."""
    rows = (
        ("tokens/s at S=64, share of U", 64, "share_of_raw", (0.92, 0.95), True),
        ("tokens/s at S=16, share of U", 16, "share_of_raw", (0.92, 0.90), True),
        ("tokens/s at S=1, share of U", 1, "share_of_raw", (1.00, 1.05), True),
        ("server CPU per token at S=64, ratio to U's", 64, "cpu_ratio", (1.10, 1.00), False),
        ("time to first token p99 at S=64, ratio to 32 of U's steps", 64, "ttft_ratio", (2.0, 3.0), False),
    )
    return [
        Target(f"{precision}: {what}", {"streams": streams, "precision": precision}, name, bound, at_least)
        for what, streams, name, bounds, at_least in rows
        for precision, bound in zip(("fp32", "int8"), bounds, strict=True)
    ]


def case_targets() -> list[Target]:
    """Return the targets of the special cases."""
    rows = (
        ("newcomer", "p99_ratio", "first token of a new request, p99, ratio to two chunks and its prompt", 1.0),
        ("long prompt", "gap_p99_ratio", "p99 gap during a very long prompt, ratio to the usual gap", 3.0),
    )
    return [
        Target(f"{precision}: {what}", {"case": case, "precision": precision}, name, bound)
        for case, name, what, bound in rows
        for precision in ("fp32", "int8")
    ]


def decoding_targets() -> list[Target]:
    """Return the targets of decoding."""
    return [
        Target(
            f"{precision}: tokens/s with a constraint on half of the streams, share of plain sampling",
            {"precision": precision, "way": HALF_CONSTRAINED},
            "share_of_plain",
            0.5,
            at_least=True,
        )
        for precision in ("fp32", "int8")
    ]


def translation_targets() -> list[Target]:
    """Return the targets of translations."""
    return [
        Target(
            f"{precision}, per call {way}: translations/s, share of onnxruntime alone",
            {"precision": precision, "calls": way},
            "share_of_raw",
            0.7,
            at_least=True,
        )
        for precision in ("fp32", "int8")
        for way in CALLS
    ]


def tree_targets() -> list[Target]:
    """Return the targets of trees."""
    return [
        Target(
            f"{hidden} units, per call {way}: nodes/s, 64 trees in flight, share of onnxruntime alone",
            {"clients": 64, "hidden": hidden, "calls": way},
            "share_of_raw",
            0.6,
            at_least=True,
        )
        for hidden in (150, 300)
        for way in CALLS
    ]


def session_targets() -> list[Target]:
    """Return the targets of sessions."""
    targets = []
    for precision in ("fp32", "int8"):
        durable = {"case": "durability", "precision": precision, "store": CHECKPOINT}
        what = f"{precision}: tokens/s on sessions in SQLite, share of streams without sessions"
        targets.append(Target(what, durable, "share_of_plain", 0.85, True))
        cached = {"case": "prefix", "precision": precision, "prefix_cache": CACHE_MIB[0]}
        what = f"{precision}: first token of a repeated prompt, p50, ratio to the first request"
        targets.append(Target(what, cached, "again_ratio", 0.05))
    return targets


def of_case(rows: Rows, case: str) -> Rows:
    return [row for row in rows if row["case"] == case]


COMPARISON_COLUMNS = [
    Column("server", lambda row: row["program"]),
    Column("precision", lambda row: row["precision"]),
    Column("case", lambda row: row["case"]),
    Column("figure", lambda row: row["figure"]),
    Column("median", figure("median", ",.1f")),
    Column("ratio", figure("ratio", ".3f")),
    Column("lowest", figure("ratio_lowest", ".2f")),
    Column("highest", figure("ratio_highest", ".2f")),
]
COMPARISON_LEGEND = """\
Ratio: relative to the first server in the same repeat, median over the repeats; above 1 where the server of the row is
better."""

_PHASES = ("before", "during", "after")
ABUSE_COLUMNS = [
    Column("attack", lambda row: row["attack"]),
    Column("health, longest [ms]", figures(",.0f", *(f"health_{when}_ms" for when in _PHASES))),
    Column("32 tokens, p50 [ms]", figures(",.0f", *(f"polite_p50_{when}_ms" for when in _PHASES))),
    Column("32 tokens, p99 [ms]", figures(",.0f", *(f"polite_p99_{when}_ms" for when in _PHASES))),
    Column("failures", figures(".0f", *(f"failures_{when}" for when in _PHASES))),
    Column("memory, peak [MiB]", figure("peak_mib")),
    Column("kept [MiB]", figure("kept_mib")),
]
ABUSE_LEGEND = """\
Before / during / after the attack. Memory: of the server, beyond that before the attack; kept: a while after it."""


def abuse_targets(attacks: Sequence[str]) -> list[Target]:
    """What the polite client may notice of each attack."""
    return [
        target
        for name in attacks
        for target in (
            Target(f"{name}: health", {"attack": name}, "health_during_ms", 1000),
            Target(f"{name}: 32 tokens, p99", {"attack": name}, "polite_p99_during_ms", 2000),
            Target(f"{name}: failures", {"attack": name}, "failures_during", 0),
            Target(f"{name}: memory kept", {"attack": name}, "kept_mib", 100),
        )
    ]
