"""How rows are divided among threads: all threads share every operator, or each thread has rows of its own."""

from __future__ import annotations


class RowPartitions:
    """For each number of rows, into how many partitions they are divided.

    Args:
        capacity: the largest number of rows.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._counts: dict[int, int] = {}  # by the power of two that the number of rows does not exceed

    def set(self, rows: int, count: int) -> None:
        """Divide `rows` rows, and other numbers up to the next power of two, into `count` partitions."""
        self._counts[_bucket(rows)] = count

    def count(self, rows: int) -> int:
        """Returns the number of partitions of `rows` rows."""
        return min(self._counts.get(_bucket(rows), 1), rows)

    def ranges(self, rows: int) -> list[range]:
        """Returns the partitions of `rows` rows, each a range of adjacent rows."""
        count = self.count(rows)
        return [range(rows * index // count, rows * (index + 1) // count) for index in range(count)]

    def __str__(self) -> str:
        """The numbers of rows that are divided, for people."""
        spans: list[tuple[int, int]] = []
        for bucket in sorted(bucket for bucket, count in self._counts.items() if count > 1):
            first, last = 2 ** (bucket - 1) + 1, min(2**bucket, self._capacity)
            if spans and spans[-1][1] == first - 1:
                first = spans.pop()[0]
            spans.append((first, last))
        return ", ".join(f"{first} to {last} rows" for first, last in spans) or "never"


def _bucket(rows: int) -> int:
    return (rows - 1).bit_length()
