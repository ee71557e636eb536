"""Freeing the rows of sequences that leave."""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Sequence as Several

from elman_server.scheduling.compaction import RowStore, compact
from elman_server.scheduling.interface import Emission
from elman_server.scheduling.rows.emissions import defect_end
from elman_server.scheduling.rows.table import RowTable
from elman_server.scheduling.sequence import Sequence


def release(leaving: Collection[int], table: RowTable, stores: Several[RowStore]) -> list[Emission]:
    """Free rows.

    Args:
        leaving: the rows.
        table: says which sequence has which row.
        stores: what else keeps something for each row.

    Returns:
        The ends of sequences that could not be moved into the holes; their rows are freed as well.
    """
    emissions: list[Emission] = []
    while leaving:
        damaged = {table.sequences[row] for row in compact(leaving, len(table), table, stores)}
        emissions += [defect_end(one) for one in damaged if not (one.aborted or one.is_finished)]
        leaving = rows_of(damaged, table)
    return emissions


def rows_of(sequences: Collection[Sequence], table: RowTable) -> list[int]:
    """The rows of some sequences, in ascending order."""
    return [row for row, sequence in enumerate(table.sequences) if sequence in sequences] if sequences else []
