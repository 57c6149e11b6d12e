"""`host`: lend this host's GPUs to an engine that another host schedules."""

from __future__ import annotations

from typing import Annotated

import typer


def command(
    rdzv_endpoint: Annotated[str, typer.Option("--rdzv-endpoint", help="HOST:PORT given to the command that measures.")],
    nnodes: Annotated[int, typer.Option("--nnodes", min=2, help="Hosts in all.")],
    node_rank: Annotated[int, typer.Option("--node-rank", min=0, help="Number of this host, 1 or more; 0 is the one that measures.")],
    wait: Annotated[float, typer.Option("--wait", min=0, help="Seconds to wait for the host that measures.")] = 600.0,
) -> None:
    """Run ranks of an engine that another host measures.

    Start it on every host but the first, and there the command that measures,
    with the same --nnodes and --rdzv-endpoint. It ends with that command. The
    engine (--engine-dir, or the cache) must have the same path on all hosts.

    Examples:
      trtllm-bench host --nnodes 2 --node-rank 1 --rdzv-endpoint node0:29400
      trtllm-bench host --nnodes 4 --node-rank 3 --rdzv-endpoint 10.0.0.1:29400
    """
    from trtllm_engines.runtime.host_agent import serve

    serve(rdzv_endpoint, nnodes, node_rank, typer.echo, wait)
