"""Folders that tests read."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
# Corpora that the repository does not contain; tests that read them are skipped where they are absent.
SHARED_DATA = ROOT.parent / "shared" / "data"
