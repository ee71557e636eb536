"""Run `elman` with one heuristic disabled: `python -m benchmarks.processes.ablation_server VARIANT serve ...`."""

from __future__ import annotations

import sys

from benchmarks.cases.ablation_variants import VARIANTS
from elman.cli import main


def run() -> None:
    variant = VARIANTS[sys.argv.pop(1)]
    variant.apply()
    main()


if __name__ == "__main__":
    run()
