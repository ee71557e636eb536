"""The clients of the tree case: each sends a tree, waits for its label, and sends the next one.

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
    """The requests that the clients send.

    Attributes:
        address: the server's address.
        pid: the server's process id.
        model: the model's name.
        trees: number of different trees, which the clients send in turn.
        clients: number of concurrent clients.
        connections: number of connections that the clients share.
        seconds: duration of the measurement.
        calls: number of calls that the clients share; each answer is followed by the next tree. 0: one call per tree.
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
    """The results of the measurement.

    Attributes:
        nodes_per_second: nodes of the answered trees per second.
        trees_per_second: answered trees per second.
        p50_ms: median latency of a tree.
        p99_ms: 99th percentile of the latency.
        server_cpu_us_per_node: CPU time of the server's process.
        client_cpu_us_per_node: CPU time of the clients' process.
    """

    nodes_per_second: float
    trees_per_second: float
    p50_ms: float
    p99_ms: float
    server_cpu_us_per_node: float
    client_cpu_us_per_node: float


def measure_labelled(order: TreeOrder) -> Labelled:
    """Run the clients in another process."""
    return Labelled(**measure("benchmarks.clients.trees", asdict(order)))


def _measure(payload: Json) -> Json:
    return asdict(asyncio.run(_send_all(TreeOrder(**payload))))


async def _send_all(order: TreeOrder) -> Labelled:
    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(order.address, options=options) for _ in range(order.connections)]
    trees = make_trees(order.trees)
    requests = [v1.ClassifyRequest(model=order.model, tree=v1.Tree(s_expression=tree.expression())) for tree in trees]
    sizes = [len(tree.tokens) for tree in trees]
    answered: list[tuple[int, float]] = []  # nodes, seconds

    def record(response: v1.ClassifyResponse, index: int, sent: float, until: float) -> None:
        now = time.perf_counter()
        if response.prediction.step_count != sizes[index % len(sizes)]:
            raise RuntimeError(f"sent {sizes[index % len(sizes)]} nodes, got {response.prediction.step_count}")
        if now < until:
            answered.append((response.prediction.step_count, now - sent))

    async def send_each(client: int, until: float) -> None:
        call = v1.InferenceServiceStub(channels[client % len(channels)]).Classify
        index = client
        while (sent := time.perf_counter()) < until:
            record(await call(requests[index % len(requests)]), index, sent, until)
            index += order.clients

    async def send_in_one_call(first: int, until: float) -> None:
        """Keep this call's share of the clients' trees in flight."""
        call = v1.InferenceServiceStub(channels[first % len(channels)]).ClassifyMany()
        sent: list[float] = []  # by request

        async def send(count: int) -> None:
            indices = range(len(sent), len(sent) + count)
            sent.extend([time.perf_counter()] * count)
            batch = [requests[(first + index * order.calls) % len(requests)] for index in indices]
            await call.write(v1.ClassifyManyRequest(requests=batch))

        await send(len(range(first, order.clients, order.calls)))
        async for message in call:
            for item in message.answers:
                index = first + item.request_index * order.calls
                record(item.response, index, sent[item.request_index], until)
            if time.perf_counter() < until:
                await send(len(message.answers))
            else:
                await call.done_writing()

    async def send_for(seconds: float) -> None:
        answered.clear()
        until = time.perf_counter() + seconds
        run_client, count = (send_in_one_call, order.calls) if order.calls else (send_each, order.clients)
        await asyncio.gather(*(run_client(client, until) for client in range(count)))

    try:
        await send_for(_WARM_UP_SECONDS)
        gc.collect()
        gc.disable()
        server_before, client_before = cpu_seconds(order.pid), time.process_time()
        await send_for(order.seconds)
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
