"""Procrastinate itself, run by the Python of its own environment: ``procrastinate_peer.py DATABASE SLOTS ROLE``.

``schema`` makes its tables; ``worker`` runs jobs; ``client`` defers one batch for each line it reads, and answers when
it is committed.  All settings are as they come, but for the number of jobs at once.  Must not import Evenkeel.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys

import procrastinate

# That an App should not be made in the main module concerns workers that look for their tasks by the App's name.
logging.getLogger("procrastinate.blueprints").setLevel(logging.CRITICAL)
DATABASE, SLOTS, ROLE = sys.argv[1], int(sys.argv[2]), sys.argv[3]
app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=DATABASE, max_size=SLOTS + 4))


async def run(command: list[str]) -> None:
    process = await asyncio.create_subprocess_exec(*command)
    try:
        await process.wait()
    except asyncio.CancelledError:
        process.kill()
        raise


task = app.task(queue="bench", name="run")(run)


async def main() -> None:
    async with app.open_async():
        if ROLE == "schema":
            await app.schema_manager.apply_schema_async()
            return
        print("ready", flush=True)
        if ROLE == "worker":
            await app.run_worker_async(queues=["bench"], concurrency=SLOTS, shutdown_graceful_timeout=1)
            return
        loop = asyncio.get_running_loop()
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            await task.batch_defer_async(*({"command": command} for command in json.loads(line)))
            print("sent", flush=True)


logging.basicConfig(level=logging.ERROR)
asyncio.run(main())
