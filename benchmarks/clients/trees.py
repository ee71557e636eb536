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
    """What to ask a server for.

    Attributes:
        address: the server's.
        pid: its process.
        model: the model's name.
        trees: how many there are; the clients take them in turns.
        clients: how many ask at once.
        connections: that they share.
        seconds: for which they ask.
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
    """What came of it.

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
    return asdict(asyncio.run(_ask_all(TreeOrder(**given))))


async def _ask_all(order: TreeOrder) -> Labelled:
    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(order.address, options=options) for _ in range(order.connections)]
    trees = make_trees(order.trees)
    requests = [v1.ClassifyRequest(model=order.model, tree=v1.Tree(s_expression=tree.expression())) for tree in trees]
    sizes = [len(tree.tokens) for tree in trees]
    answered: list[tuple[int, float]] = []  # nodes, seconds

    def take(response: v1.ClassifyResponse, place: int, sent: float, until: float) -> None:
        now = time.perf_counter()
        if response.prediction.step_count != sizes[place % len(sizes)]:
            raise RuntimeError(f"sent {sizes[place % len(sizes)]} nodes, got {response.prediction.step_count}")
        if now < until:
            answered.append((response.prediction.step_count, now - sent))

    async def ask(client: int, until: float) -> None:
        call = v1.InferenceServiceStub(channels[client % len(channels)]).Classify
        place = client
        while (sent := time.perf_counter()) < until:
            take(await call(requests[place % len(requests)]), place, sent, until)
            place += order.clients

    async def ask_many(first: int, until: float) -> None:
        """Have as many trees under way in one call as it is one of the clients'."""
        call = v1.InferenceServiceStub(channels[first % len(channels)]).ClassifyMany()
        sent: list[float] = []  # by request

        async def send(count: int) -> None:
            some = range(len(sent), len(sent) + count)
            sent.extend([time.perf_counter()] * count)
            asked = [requests[(first + place * order.calls) % len(requests)] for place in some]
            await call.write(v1.ClassifyManyRequest(requests=asked))

        await send(len(range(first, order.clients, order.calls)))
        async for message in call:
            for found in message.answers:
                place = first + found.request_index * order.calls
                take(found.response, place, sent[found.request_index], until)
            if time.perf_counter() < until:
                await send(len(message.answers))
            else:
                await call.done_writing()

    async def ask_for(seconds: float) -> None:
        answered.clear()
        until = time.perf_counter() + seconds
        asking, count = (ask_many, order.calls) if order.calls else (ask, order.clients)
        await asyncio.gather(*(asking(client, until) for client in range(count)))

    try:
        await ask_for(_WARM_UP_SECONDS)
        gc.collect()
        gc.disable()
        server_before, client_before = cpu_seconds(order.pid), time.process_time()
        await ask_for(order.seconds)
        server_after, client_after = cpu_seconds(order.pid), time.process_time()
    finally:
        await asyncio.gather(*(channel.close() for channel in channels))
    nodes = sum(count for count, _ in answered)
    waited = 1000 * np.array([seconds for _, seconds in answered])
    return Labelled(
        nodes_per_second=nodes / order.seconds,
        trees_per_second=len(answered) / order.seconds,
        p50_ms=float(np.percentile(waited, 50)),
        p99_ms=float(np.percentile(waited, 99)),
        server_cpu_us_per_node=1e6 * (server_after - server_before) / nodes,
        client_cpu_us_per_node=1e6 * (client_after - client_before) / nodes,
    )


if __name__ == "__main__":
    answer(_measure)
