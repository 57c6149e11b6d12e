"""The live page's server: it sees what a sweep appends, tells the viewer, and serves its page, data, events and linked profiles alone."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import aiohttp
import pytest

from trtllm_dashboards.errors import DashboardError
from trtllm_dashboards.html.serve import Watch, listening, serve
from trtllm_results.errors import ResultsError
from trtllm_results.record.row import Row
from trtllm_results.store.table import Store


def test_a_viewer_hears_of_each_appended_cell_and_reads_it(tmp_path: Path, sweep_rows: list[Row]) -> None:
    folder = tmp_path / "sweep"

    async def watch() -> list[int]:
        counts = []
        async with listening(Watch([str(folder)]), poll_s=0.05) as address, aiohttp.ClientSession() as viewer:

            async def cells() -> int:
                async with viewer.get(address + "data") as answer:
                    return int((await answer.json())["n"])

            async with viewer.get(address + "events") as events:
                for batch in ([], sweep_rows[:3], sweep_rows[3:9]):
                    if batch:
                        await asyncio.to_thread(Store(folder).append, *batch)
                    line = await asyncio.wait_for(events.content.readline(), 10)
                    assert line == b"data: changed\n"
                    await events.content.readline()
                    counts.append(await cells())
            async with viewer.get(address) as answer:
                text = await answer.text()
                assert "connect-src 'self'" in text
                assert "window.LIVE = true" in text
            async with viewer.get(address + "results.parquet") as answer:
                assert answer.status == 404
        return counts

    assert asyncio.run(watch()) == [0, 1, 3]


def test_a_linked_profile_is_served_and_links_back_to_its_cell(tmp_path: Path, sweep_rows: list[Row]) -> None:
    Store(tmp_path / "s").append(*sweep_rows[:3])
    key = sweep_rows[0].key
    (tmp_path / "profile").mkdir()
    (tmp_path / "profile" / "profile.json").write_text(json.dumps({"kernels": [], "roles": {}, "steps": [], "cell": {"cell_key": key}}))

    async def ask() -> tuple[list[str], str, int]:
        async with listening(Watch([str(tmp_path / "s")])) as address, aiohttp.ClientSession() as viewer:
            async with viewer.get(address + "data") as answer:
                links = [one["href"] for one in (await answer.json())["profiles"]]
            async with viewer.get(address + links[0]) as answer:
                text = await answer.text()
            async with viewer.get(address + "profiles/../s/results.parquet") as answer:
                return links, text, answer.status

    links, text, status = asyncio.run(ask())
    assert links == ["profiles/0"]
    assert f'"back":"/#cell={key}"' in text
    assert status == 404


def test_the_payload_is_built_once_a_change(tmp_path: Path, sweep_rows: list[Row]) -> None:
    Store(tmp_path / "s").append(*sweep_rows[:3])

    async def twice() -> tuple[object, object]:
        watch = Watch([str(tmp_path / "s")])
        return await watch.payload(), await watch.payload()

    first, second = asyncio.run(twice())
    assert first is second
    json.dumps(first, allow_nan=False)


def test_a_taken_port_and_wrong_paths_are_one_sentence(tmp_path: Path, sweep_rows: list[Row]) -> None:
    Store(tmp_path / "s").append(*sweep_rows[:3])

    async def clash() -> None:
        watch = Watch([str(tmp_path / "s")])
        async with listening(watch) as address, listening(watch, port=int(address.rsplit(":", 1)[1].strip("/"))):
            pass

    with pytest.raises(DashboardError, match="cannot listen on"):
        asyncio.run(clash())
    with pytest.raises(ResultsError, match="no results at"):
        serve([str(tmp_path / "not" / "there")], announce=print)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "results.parquet").write_text("not parquet")
    with pytest.raises(ResultsError, match="not a readable Parquet"):
        serve([str(tmp_path / "bad")], announce=print)
