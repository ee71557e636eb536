"""The columns of each table, and what must hold at the end."""

from __future__ import annotations

from benchmarks.cases.decoding import HALF_CONSTRAINED
from benchmarks.cases.measurement import CALLS
from benchmarks.cases.session_prefixes import CACHE_MIB
from benchmarks.cases.session_stores import CHECKPOINT
from benchmarks.report.tables import Column, Promise, Rows, figure, figures

_OTHERS = Column("others", figure("others_share_of_cores", ".0%"))
_CASE = (Column("S", figure("streams", "d")), Column("", figure("precision", "")))
THROUGHPUT_COLUMNS = (
    *_CASE,
    Column("tokens/s", figure("tokens_per_s")),
    Column("share of U", figure("share_of_raw", ".2f")),
    Column("lowest / highest", figures(".2f", "share_of_raw_lowest", "share_of_raw_highest")),
    Column("U tokens/s", figure("raw_tokens_per_s")),
    Column("limit", figure("limit_tokens_per_s")),
    Column("tokens a\nmessage", figure("tokens_per_message", ".1f")),
    _OTHERS,
)
LATENCY_COLUMNS = (
    *_CASE,
    Column("first token ms\np50 / p99", figures(".1f", "ttft_p50_ms", "ttft_p99_ms")),
    Column("p99 over\nU's prompt", figure("ttft_ratio", ".2f")),
    Column("gap ms\np50 / p99", figures(".2f", "gap_p50_ms", "gap_p99_ms")),
    Column("CPU us a token\nserver / U", figures(".1f", "server_cpu_us_per_token", "raw_cpu_us_per_token")),
    Column("ratio", figure("cpu_ratio", ".2f")),
    Column("peak MiB", figure("peak_memory_mib")),
)
THROUGHPUT_LEGEND = """\
S streams start at once. U: onnxruntime alone, the plain step, one run per step on all cores, numpy sampling, no
network. Limit: the matrix products alone. Others: what other processes used of the cores meanwhile. Medians over the
repeats; shares and ratios are to U in the same repeat."""
LATENCY_LEGEND = """\
First token: from sending the request. Gap: between two successive messages of one stream that carry tokens; a message
may carry several. CPU: of the whole process; onnxruntime's threads in U spin while they wait."""

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
        Column("its steps\nthat are wanted", figure("lock_step_useful_share", ".0%")),
        _OTHERS,
    ),
    "newcomer": (
        Column("", figure("precision", "")),
        Column("first token ms\np50 / p99", figures(".1f", "ttft_p50_ms", "ttft_p99_ms")),
        Column("allowed ms", figure("allowed_ms", ".1f")),
        Column("of it\np50 / p99", figures(".2f", "p50_ratio", "p99_ratio")),
        Column("server's step ms", figure("step_ms", ".2f")),
        _OTHERS,
    ),
    "long prompt": (
        Column("", figure("precision", "")),
        Column("gap ms\np50 / p99", figures(".2f", "gap_p50_ms", "gap_p99_ms")),
        Column("usual gap ms\np50 / p99", figures(".2f", "usual_gap_p50_ms", "usual_gap_p99_ms")),
        Column("p99 over\nthe usual", figure("gap_p99_ratio", ".2f")),
        _OTHERS,
    ),
    "lone": (
        Column("", figure("precision", "")),
        Column("first token ms\np50 / p99", figures(".1f", "ttft_p50_ms", "ttft_p99_ms")),
        Column("all tokens ms\np50 / p99", figures(".1f", "whole_p50_ms", "whole_p99_ms")),
        Column("U's steps ms", figure("raw_ms", ".1f")),
        Column("p50 over\nU's", figure("p50_ratio", ".2f")),
        _OTHERS,
    ),
}
CASE_TITLES = {
    "poisson": "Streams that arrive at random, with lengths that differ",
    "newcomer": "A stream that arrives while 63 others run",
    "long prompt": "64 streams, one of them still reading a prompt of 16,384 tokens",
    "lone": "A client that calls now and then",
}
CASE_LEGENDS = {
    "poisson": """\
Prompts of 4 to 128 tokens, 16 to 512 generated. 64 run when it begins, and others come as fast as they end on a server
where 64 run. Lock step: the same requests worked out in batches of at most 64 that wait for their longest, by U's own
steps, without network or scheduling.""",
    "newcomer": "Allowed: two chunks, 5 ms each by default, and a step of the server for each token of the prompt.",
    "long prompt": "The gaps of the 63 others; the usual ones are those of 64 equal streams.",
    "lone": """\
Prompts of 32 tokens, 64 generated, one such stream every 40 to 80 ms; the server is idle between two. U has no network,
and its threads spin all the time.""",
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
    Column("us a row's\nstep", figure("us_per_row_step", ",.1f")),
    Column("products", figure("products_us", ",.1f")),
    Column("rest of\nU's step", figure("rest_of_step_us", ",.1f")),
    Column("edge", figure("edge_us", ",.1f")),
    _OTHERS,
)
GROWTH_LEGEND = """\
One factor at a time around 16 streams, 512 hidden units, 96 tokens in the vocabulary, prompts of 32. A row's step: a
token of one stream, read or written. Edge: sampling, scheduling, network, clients, less what a better graph saves."""

DECODING_COLUMNS = (
    Column("", figure("precision", "")),
    Column("decoding", figure("way", "")),
    Column("tokens/s", figure("tokens_per_s")),
    Column("of plain sampling", figure("share_of_plain", ".2f")),
    Column("lowest / highest", figures(".2f", "share_of_plain_lowest", "share_of_plain_highest")),
    Column("CPU us\na token", figure("server_cpu_us_per_token", ".1f")),
    _OTHERS,
)
DECODING_LEGEND = """\
64 rows that start at once, prompts of 32, 256 tokens generated by each. Shares are of rounds of plain sampling that
took turns with the others on the same server; of a search every beam's token counts."""

TRANSLATION_COLUMNS = (
    Column("", figure("precision", "")),
    Column("a call", figure("calls", "")),
    Column("translations/s", figure("translations_per_s")),
    Column("onnxruntime\nalone", figure("raw_translations_per_s")),
    Column("share of it", figure("share_of_raw", ".2f")),
    Column("lowest / highest", figures(".2f", "share_of_raw_lowest", "share_of_raw_highest")),
    Column("its encoder's\nshare", figure("raw_encoder_share", ".2f")),
    Column("ms a translation\np50 / p99", figures(".0f", "latency_p50_ms", "latency_p99_ms")),
    Column("CPU ms\na translation", figure("server_cpu_ms_per_translation", ".2f")),
    _OTHERS,
)
TRANSLATION_LEGEND = """\
64 translations under way, the next asked for as soon as one is there: each in a call of its own (Generate), or all in
one (GenerateMany). Sources of 6 to 24 tokens, 20 tokens written greedily. Onnxruntime alone reads the same 64 sources
as one batch and writes all of them in step."""

TREE_COLUMNS = (
    Column("clients", figure("clients", "d")),
    Column("units", figure("hidden", "d")),
    Column("a call", figure("calls", "")),
    Column("trees/s", figure("trees_per_second")),
    Column("nodes/s", figure("nodes_per_second")),
    Column("share of\nonnxruntime alone", figure("share_of_raw", ".2f")),
    Column("lowest / highest", figures(".2f", "share_of_raw_lowest", "share_of_raw_highest")),
    Column("its nodes/s", figure("raw_nodes_per_second")),
    Column("answer ms\np50 / p99", figures(".1f", "p50_ms", "p99_ms")),
    Column("CPU us a node\nserver / alone", figures(".1f", "server_cpu_us_per_node", "raw_cpu_us_per_node")),
    _OTHERS,
)
TREE_LEGEND = """\
Binary parse trees of 5 to 40 words through a binary Tree-LSTM, 10,000 words with vectors of twice its units; the next
tree is sent when one has been answered, each in a call of its own (Classify), or all in one (ClassifyMany). Onnxruntime
alone: as many trees as there are clients, level by level, laid out beforehand, the plain step, all cores, no network;
all in turns."""

SESSION_COLUMNS = {
    "durability": (
        Column("", figure("precision", "")),
        Column("sessions", figure("store", "")),
        Column("tokens/s", figure("tokens_per_s")),
        Column("of those without", figure("share_of_plain", ".3f")),
        Column("lowest / highest", figures(".2f", "share_of_plain_lowest", "share_of_plain_highest")),
        Column("first token ms\np50 / p99", figures(".0f", "ttft_p50_ms", "ttft_p99_ms")),
        Column("gap ms\np50 / p99", figures(".0f", "gap_p50_ms", "gap_p99_ms")),
        Column("CPU us\na token", figure("server_cpu_us_per_token", ".1f")),
        _OTHERS,
    ),
    "idle": (
        Column("kept in", figure("store", "")),
        Column("sessions", figure("sessions", ",d")),
        Column("state\nbytes", figure("state_bytes", ",d")),
        Column("memory:\na fork", figure("memory_bytes_of_fork")),
        Column("memory beyond\nits own state", figure("memory_bytes_beyond_state")),
        Column("file beyond\nthe state", figure("file_bytes_beyond_state")),
        Column("made in s", figure("seconds_to_make", ".0f")),
        Column("woken ms\np50 / p99", figures(".2f", "wake_p50_ms", "wake_p99_ms")),
        Column("again ms\np50 / p99", figures(".2f", "again_p50_ms", "again_p99_ms")),
        Column("no session ms\np50 / p99", figures(".2f", "plain_p50_ms", "plain_p99_ms")),
        _OTHERS,
    ),
    "prefix": (
        Column("", figure("precision", "")),
        Column("cache MiB", figure("prefix_cache", "d")),
        Column("prompts", figure("pairs", "d")),
        Column("first asked ms\np50 / p99", figures(",.1f", "first_p50_ms", "first_p99_ms")),
        Column("asked again ms\np50 / p99", figures(",.1f", "again_p50_ms", "again_p99_ms")),
        Column("again over\nfirst, p50", figure("again_ratio", ".4f")),
        Column("not read again,\ntokens", figure("cached_tokens", ",d")),
        _OTHERS,
    ),
}
SESSION_TITLES = {
    "durability": "64 streams, each on a session of its own",
    "idle": "Sessions that nobody uses",
    "prefix": "Time to first token of a prompt of 4,096 tokens",
}
SESSION_LEGENDS = {
    "durability": """\
Streams that start at once, prompts of 32, 256 tokens generated; every call has a name and a new, empty session. Medians
over the repeats; shares are of the streams without sessions that took turns with those on sessions, on the same server.
CPU: of the server, and of Redis.""",
    "idle": """\
Bytes a session. All hold 32 tokens and are forks of a few, whose states they share in memory; what one with a state of
its own takes was measured with a tenth as many that were imported. Woken: a whole call for one token, one at a time, on
sessions taken at random; again: the same one once more. From SQLite by a server that keeps 1 MiB of sessions in memory
(its file may be in the system's page cache). No session: a call for one token, prompt of one.""",
    "prefix": "Random prompts, one call at a time, each of them asked and then asked again.",
}


def serving_promises() -> list[Promise]:
    """The floors and ceilings of the main table."""
    rows = (
        ("tokens/s at S=64, share of U", 64, "share_of_raw", (0.92, 0.95), True),
        ("tokens/s at S=16, share of U", 16, "share_of_raw", (0.92, 0.90), True),
        ("tokens/s at S=1, share of U", 1, "share_of_raw", (1.00, 1.05), True),
        ("server CPU per token at S=64, ratio to U's", 64, "cpu_ratio", (1.10, 1.00), False),
        ("time to first token p99 at S=64, over 32 of U's steps", 64, "ttft_ratio", (2.0, 3.0), False),
    )
    return [
        Promise(f"{precision}: {what}", {"streams": streams, "precision": precision}, name, bound, at_least)
        for what, streams, name, bounds, at_least in rows
        for precision, bound in zip(("fp32", "int8"), bounds, strict=True)
    ]


def case_promises() -> list[Promise]:
    """Those of the special cases."""
    rows = (
        ("newcomer", "p99_ratio", "first token of a newcomer, p99, over two chunks and its prompt", 1.0),
        ("long prompt", "gap_p99_ratio", "p99 gap beside a very long prompt, over the usual", 3.0),
    )
    return [
        Promise(f"{precision}: {what}", {"case": case, "precision": precision}, name, bound)
        for case, name, what, bound in rows
        for precision in ("fp32", "int8")
    ]


def decoding_promises() -> list[Promise]:
    """What must hold of decoding."""
    return [
        Promise(
            f"{precision}: tokens/s with a constraint on half of the streams, of those without any",
            {"precision": precision, "way": HALF_CONSTRAINED},
            "share_of_plain",
            0.5,
            at_least=True,
        )
        for precision in ("fp32", "int8")
    ]


def translation_promises() -> list[Promise]:
    """What must hold of translations."""
    return [
        Promise(
            f"{precision}, a call {way}: translations/s, of onnxruntime alone",
            {"precision": precision, "calls": way},
            "share_of_raw",
            0.7,
            at_least=True,
        )
        for precision in ("fp32", "int8")
        for way in CALLS
    ]


def tree_promises() -> list[Promise]:
    """What must hold of trees."""
    return [
        Promise(
            f"{hidden} units, a call {way}: nodes/s, 64 trees under way, of onnxruntime alone",
            {"clients": 64, "hidden": hidden, "calls": way},
            "share_of_raw",
            0.6,
            at_least=True,
        )
        for hidden in (150, 300)
        for way in CALLS
    ]


def session_promises() -> list[Promise]:
    """Those of sessions."""
    promises = []
    for precision in ("fp32", "int8"):
        durable = {"case": "durability", "precision": precision, "store": CHECKPOINT}
        what = f"{precision}: tokens/s on sessions in SQLite, of those without sessions"
        promises.append(Promise(what, durable, "share_of_plain", 0.85, True))
        cached = {"case": "prefix", "precision": precision, "prefix_cache": CACHE_MIB[0]}
        what = f"{precision}: first token of a prompt asked again, p50, over the first time"
        promises.append(Promise(what, cached, "again_ratio", 0.05))
    return promises


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
ratio: to the first server in the same repeat, the median over the repeats; above 1 where the server of the row is
better."""
