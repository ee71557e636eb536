"""Grammars are compiled in a process of their own first, where they can do no harm.

llguidance bounds how large a grammar may become, but not what it takes to find that out: a hundred characters are
enough for gigabytes, for minutes, or for a recursion that ends the process. So a grammar is compiled by the child of a
helper first, whose processor time, memory and stack are limited, and which may die of it. What it has compiled does the
server no harm.

The helper runs this file as a program: nothing else of the server is imported here.
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
from pathlib import Path
from typing import NoReturn

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

SECONDS = 2.0  # of processor time, for one grammar
MEBIBYTES = 384  # for one grammar, about
SECONDS_A_STEP = 0.1  # of processor time, to find what may come first

# Not the grammar's doing, perhaps: another time it may compile.
ENDED = "too complex: the process that compiled it was ended"

_ADDRESS_SPACE = (MEBIBYTES + 128) << 20  # Python and llguidance themselves take about 100 MiB of it.
_STACK = 1 << 20  # Less than any thread of the server has.
_CAUSES = {
    signal.SIGPROF: f"more than {SECONDS:g} s",
    signal.SIGABRT: f"more than {MEBIBYTES} MiB",
    signal.SIGSEGV: "too deep a recursion",
}

# Smaller than llguidance's own where they bound a step: all sequences of a batch wait for the slowest of its masks.
LIMITS = LLParserLimits(
    max_items_in_row=1000,
    step_lexer_fuel=50_000,
    step_max_items=10_000,
    max_lexer_states=50_000,  # 1 to 2 KiB each, kept with the grammar
    verbose_errors=False,
)


class Tokens:
    """A vocabulary as llguidance asks for it.

    Args:
        tokens: the bytes of each; none: never text.
        end_token: the id of the end token.
    """

    bos_token_id = None

    def __init__(self, tokens: list[bytes], end_token: int) -> None:
        self.tokens = tokens
        self.eos_token_id = end_token

    def __call__(self, text: bytes) -> list[int]:
        """Nothing is ever tokenized: no text is forced upon the model, see `expressions`."""
        return []


def tokenizer_of(tokens: list[bytes], end_token: int) -> LLTokenizer:
    """A vocabulary for llguidance."""
    return LLTokenizer(TokenizerWrapper(Tokens(tokens, end_token)))


class Rehearsal:
    """Compiles grammars in a helper. Calls from several threads are answered one after the other."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._helper: subprocess.Popen[bytes] | None = None

    def complaint(self, grammar: str) -> str:
        """What is wrong with a grammar in llguidance's own form, in llguidance's words; empty if nothing is."""
        with self._lock:
            helper = self._running()
            assert helper.stdin is not None
            assert helper.stdout is not None
            answer = b""
            with contextlib.suppress(BrokenPipeError):
                helper.stdin.write(json.dumps(grammar).encode() + b"\n")
                helper.stdin.flush()
                answer = helper.stdout.readline()
            if not answer.endswith(b"\n"):  # Somebody has ended it.
                _dismiss(helper)
                return ENDED
            return str(json.loads(answer))

    def _running(self) -> subprocess.Popen[bytes]:
        if self._helper is None or self._helper.poll() is not None:
            self._helper = subprocess.Popen(
                [sys.executable, "-P", str(Path(__file__).resolve())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
            weakref.finalize(self, _dismiss, self._helper)
        return self._helper


def _dismiss(helper: subprocess.Popen[bytes]) -> None:
    helper.kill()
    helper.communicate()


def _complaint(tokenizer: LLTokenizer, grammar: str) -> str:
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=LIMITS)
    before = time.process_time()
    if not matcher.is_error():
        matcher.compute_bitmask()
    if time.process_time() - before > SECONDS_A_STEP:
        return f"too complex: to find what may come first takes more than {SECONDS_A_STEP:g} s"
    return matcher.get_error()


def _answer(complaint: str) -> None:
    sys.stdout.buffer.write(json.dumps(complaint).encode() + b"\n")
    sys.stdout.buffer.flush()


def _rehearse(tokenizer: LLTokenizer, grammar: str) -> NoReturn:
    """Answer and end, or die of it."""

    def compile_and_answer() -> None:
        _answer(_complaint(tokenizer, grammar))
        os._exit(0)

    with contextlib.suppress(ValueError):  # Not every system has it.
        resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, _ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    threading.stack_size(_STACK)
    thread = threading.Thread(target=compile_and_answer)
    thread.start()
    thread.join()
    os._exit(1)


def main() -> None:
    """Answer one complaint a line for one grammar a line, both JSON strings, until there are no more."""
    tokenizer = tokenizer_of([bytes([byte]) for byte in range(255)] + [b""], 255)
    for line in sys.stdin.buffer:
        child = os.fork()
        if not child:
            _rehearse(tokenizer, json.loads(line))
        _, status = os.waitpid(child, 0)
        if status:
            signal_number = -os.waitstatus_to_exitcode(status)
            cause = next((cause for known, cause in _CAUSES.items() if known == signal_number), "more than there is")
            _answer(ENDED if signal_number == signal.SIGKILL else f"too complex: compiling it takes {cause}")


if __name__ == "__main__":
    main()
