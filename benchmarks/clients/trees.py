"""The clients of the tree case, in a process of their own: each sends a tree, waits for its label, and sends the next.

python -m benchmarks.clients.trees < order.json
"""

from __future__ import annotations

import asyncio
import gc
import time
from dataclasses import asdict, dataclass

import grpc
import numpy as np

from benchmarks.cases.tree_set import make_trees
from benchmarks.processes.machine import cpu_seconds
from benchmarks.processes.worker import Json, answer, measure
from elman_protos import v1

_WARM_UP_SECONDS = 1.0


@dataclass(frozen=True)
class TreeOrder:
    """What the clients send.

    Attributes:
        address: the server's.
        pid: its process.
        model: the model's name.
        trees: how many different ones; the clients take turns.
        clients: how many there are; each waits for one tree.
        connections: that they share.
        seconds: how long they send.
        calls: that they share; each tree is answered with the next one. 0: every tree has a call of its own.
    """

    address: str
    pid: int
    model: str
    trees: int
    clients: int
    connections: int
    seconds: float
    calls: int = 0


@dataclass(frozen=True)
class Labelled:
    """The figures.

    Attributes:
        nodes_per_second: of the trees that were answered.
        trees_per_second: likewise.
        p50_ms: from sending a tree to its answer.
        p99_ms: likewise.
        server_cpu_us_per_node: of the server's process.
        client_cpu_us_per_node: of the clients'.
    """

    nodes_per_second: float
    trees_per_second: float
    p50_ms: float
    p99_ms: float
    server_cpu_us_per_node: float
    client_cpu_us_per_node: float


def measure_labelled(order: TreeOrder) -> Labelled:
    """Run the clients now, in another process."""
    return Labelled(**measure("benchmarks.clients.trees", asdict(order)))


def _measure(given: Json) -> Json:
    return asdict(asyncio.run(_label_all(TreeOrder(**given))))


class _Clients:
    """What is sent, and the trees that were labelled in time."""

    def __init__(self, order: TreeOrder) -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        self._order = order
        self._channels = [grpc.aio.insecure_channel(order.address, options=options) for _ in range(order.connections)]
        trees = make_trees(order.trees)
        self._requests = [
            v1.ClassifyRequest(model=order.model, tree=v1.Tree(s_expression=tree.expression())) for tree in trees
        ]
        self._sizes = [len(tree.tokens) for tree in trees]
        self.labelled: list[tuple[int, float]] = []  # nodes, seconds

    async def run(self, seconds: float) -> None:
        self.labelled.clear()
        until = time.perf_counter() + seconds
        run, count = (self._batch_call, self._order.calls) if self._order.calls else (self._client, self._order.clients)
        await asyncio.gather(*(run(number, until) for number in range(count)))

    async def close(self) -> None:
        await asyncio.gather(*(channel.close() for channel in self._channels))

    def _take(self, response: v1.ClassifyResponse, index: int, sent: float, until: float) -> None:
        now = time.perf_counter()
        size = self._sizes[index % len(self._sizes)]
        if response.prediction.step_count != size:
            raise RuntimeError(f"sent {size} nodes, got {response.prediction.step_count}")
        if now < until:
            self.labelled.append((size, now - sent))

    def _stub(self, number: int) -> v1.InferenceServiceAsyncStub:
        return v1.InferenceServiceStub(self._channels[number % len(self._channels)])

    async def _client(self, number: int, until: float) -> None:
        call = self._stub(number).Classify
        index = number
        while (sent := time.perf_counter()) < until:
            self._take(await call(self._requests[index % len(self._requests)]), index, sent, until)
            index += self._order.clients

    async def _batch_call(self, number: int, until: float) -> None:
        """Keep as many trees under way in one call as it has of the clients."""
        call = self._stub(number).ClassifyMany()
        order, requests = self._order, self._requests
        sent: list[float] = []  # by request

        async def send(count: int) -> None:
            indices = range(len(sent), len(sent) + count)
            sent.extend([time.perf_counter()] * count)
            batch = [requests[(number + index * order.calls) % len(requests)] for index in indices]
            await call.write(v1.ClassifyManyRequest(requests=batch))

        await send(len(range(number, order.clients, order.calls)))
        async for message in call:
            for found in message.answers:
                index = number + found.request_index * order.calls
                self._take(found.response, index, sent[found.request_index], until)
            if time.perf_counter() < until:
                await send(len(message.answers))
            else:
                await call.done_writing()


async def _label_all(order: TreeOrder) -> Labelled:
    clients = _Clients(order)
    try:
        await clients.run(_WARM_UP_SECONDS)
        gc.collect()
        gc.disable()
        server_before, client_before = cpu_seconds(order.pid), time.process_time()
        await clients.run(order.seconds)
        server_after, client_after = cpu_seconds(order.pid), time.process_time()
    finally:
        await clients.close()
    nodes = sum(count for count, _ in clients.labelled)
    waited = 1000 * np.array([seconds for _, seconds in clients.labelled])
    return Labelled(
        nodes_per_second=nodes / order.seconds,
        trees_per_second=len(clients.labelled) / order.seconds,
        p50_ms=float(np.percentile(waited, 50)),
        p99_ms=float(np.percentile(waited, 99)),
        server_cpu_us_per_node=1e6 * (server_after - server_before) / nodes,
        client_cpu_us_per_node=1e6 * (client_after - client_before) / nodes,
    )


if __name__ == "__main__":
    answer(_measure)
