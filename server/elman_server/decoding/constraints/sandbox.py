"""Sandboxed compilation of grammars: in a process with limited resources, before the server compiles them itself.

llguidance limits the size of a grammar, but not the cost of reaching that limit: a hundred characters can take
gigabytes, minutes, or a recursion that ends the process. A helper process therefore forks a child for each grammar,
whose CPU time, memory and stack are limited and which may be killed. A grammar that compiles there is safe to compile
in the server.

The helper runs this file as a program, so it imports nothing of the server.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import weakref
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

_CPU_SECONDS = 2.0  # per grammar
_MEBIBYTES = 384  # per grammar, approximately, while it is compiled
_COMPILED_MEBIBYTES = 64  # per grammar, afterwards
_NICENESS = 10  # compiling is not to slow down the models
_FIRST_MASK_SECONDS = 0.1  # CPU time to find which tokens may come first

KILLED = "too complex: the process that compiled it was killed"  # perhaps by something else; not to be cached

_WARM_UP = json.dumps({"grammars": [{"lark_grammar": "start: /a/"}]})  # whose memory is not counted

_ADDRESS_SPACE = (_MEBIBYTES + 128) << 20  # bytes; Python and llguidance take about 100 MiB
_STACK = 1 << 20  # bytes; less than any thread of the server has
_LIMIT_EXCEEDED = {
    signal.SIGPROF: f"more than {_CPU_SECONDS:g} s",
    signal.SIGABRT: f"more than {_MEBIBYTES} MiB",
    signal.SIGSEGV: "too deep a recursion",
}

MAX_STATES, STATE_BYTES = 10_000, 1400  # of the automaton, kept with the grammar

# Lower than llguidance's defaults where they bound a step, since a batch waits for the slowest mask of its rows.
LIMITS = LLParserLimits(
    max_items_in_row=1000,
    step_lexer_fuel=50_000,
    step_max_items=10_000,
    max_lexer_states=MAX_STATES,
    verbose_errors=False,
)


class _TokenizerSource:
    """A vocabulary as `TokenizerWrapper` reads it.

    Args:
        tokens: the bytes of each token; empty for one that is never text.
        end_token: id of the end token.
    """

    bos_token_id = None

    def __init__(self, tokens: list[bytes], end_token: int) -> None:
        self.tokens = tokens
        self.eos_token_id = end_token

    def __call__(self, text: bytes) -> list[int]:
        """Tokenize nothing: grammars force no text, so llguidance never needs it."""
        return []


def make_tokenizer(tokens: list[bytes], end_token: int) -> LLTokenizer:
    """Return a tokenizer of llguidance for a vocabulary.

    Args:
        tokens: the bytes of each token; empty for one that is never text.
        end_token: id of the end token.
    """
    return LLTokenizer(TokenizerWrapper(_TokenizerSource(tokens, end_token)))


@dataclass(frozen=True)
class Trial:
    """How a compilation went.

    Attributes:
        error: what is wrong with the grammar, in llguidance's words; empty if it compiles.
        size: about how many bytes of memory the compiled grammar takes.
    """

    error: str
    size: int = 0


class CompilationSandbox:
    """Compiles grammars in a helper process. Thread-safe; concurrent calls are answered one after another."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._helper: subprocess.Popen[bytes] | None = None

    def try_out(self, grammar: str) -> Trial:
        """Compile a grammar in llguidance's own form."""
        with self._lock:
            helper = self._running_helper()
            assert helper.stdin is not None
            assert helper.stdout is not None
            answer = b""
            with contextlib.suppress(BrokenPipeError):
                helper.stdin.write(json.dumps(grammar).encode() + b"\n")
                helper.stdin.flush()
                answer = helper.stdout.readline()
            if not answer.endswith(b"\n"):  # The helper was killed.
                _kill(helper)
                return Trial(KILLED)
            return Trial(**json.loads(answer))

    def _running_helper(self) -> subprocess.Popen[bytes]:
        if self._helper is None or self._helper.poll() is not None:
            self._helper = subprocess.Popen(
                [sys.executable, "-P", str(Path(__file__).resolve())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
            weakref.finalize(self, _kill, self._helper)
        return self._helper


def _kill(helper: subprocess.Popen[bytes]) -> None:
    helper.kill()
    helper.communicate()


def _compile(tokenizer: LLTokenizer, grammar: str) -> Trial:
    """Compile a grammar in this process."""
    LLMatcher(tokenizer, _WARM_UP, log_level=0).compute_bitmask()
    resident = _resident_bytes()
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=LIMITS)
    before = time.process_time()
    if not matcher.is_error():
        matcher.compute_bitmask()
    if time.process_time() - before > _FIRST_MASK_SECONDS:
        return Trial(f"too complex: to find what may come first takes more than {_FIRST_MASK_SECONDS:g} s")
    size = _resident_bytes() - resident
    if size > _COMPILED_MEBIBYTES << 20:
        return Trial(f"too complex: it takes more than {_COMPILED_MEBIBYTES} MiB of memory")
    return Trial(matcher.get_error(), size)


def _resident_bytes() -> int:
    """Return the memory of this process; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return 0


def _answer(trial: Trial) -> None:
    sys.stdout.buffer.write(json.dumps(asdict(trial)).encode() + b"\n")
    sys.stdout.buffer.flush()


def _compile_within_limits(tokenizer: LLTokenizer, grammar: str) -> NoReturn:
    """Compile a grammar, answer, and end the process; a limit may kill it before."""

    def compile_and_answer() -> None:
        _answer(_compile(tokenizer, grammar))
        os._exit(0)

    with contextlib.suppress(ValueError):  # Not every system has this limit.
        resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, _ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.setitimer(signal.ITIMER_PROF, _CPU_SECONDS)
    threading.stack_size(_STACK)
    thread = threading.Thread(target=compile_and_answer)
    thread.start()
    thread.join()
    os._exit(1)


def main() -> None:
    """Read grammars and write how the compilation of each went, a line of JSON for each, until the input ends."""
    with contextlib.suppress(AttributeError, OSError):
        os.nice(_NICENESS)
    tokenizer = make_tokenizer([bytes([byte]) for byte in range(255)] + [b""], 255)
    for line in sys.stdin.buffer:
        child = os.fork()
        if not child:
            _compile_within_limits(tokenizer, json.loads(line))
        _, status = os.waitpid(child, 0)
        if status:
            signal_number = -os.waitstatus_to_exitcode(status)
            excess = next((text for known, text in _LIMIT_EXCEEDED.items() if known == signal_number), "too much")
            killed = signal_number == signal.SIGKILL
            _answer(Trial(KILLED if killed else f"too complex: compiling it takes {excess}"))


if __name__ == "__main__":
    main()
