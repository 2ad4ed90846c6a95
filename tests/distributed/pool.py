"""Real processes that talk through gloo, started once and shared by the tests of a session."""

from __future__ import annotations

import datetime
import multiprocessing as mp
import os
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist

TIMEOUT = 60.0


def join_group(rank: int, world: int, rendezvous: str, timeout: float = TIMEOUT) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{rendezvous}",
        rank=rank,
        world_size=world,
        timeout=datetime.timedelta(seconds=timeout),
    )


def serve(rank: int, world: int, rendezvous: str, connection: Connection) -> None:
    """Join the group, then run what arrives until nothing more does."""
    join_group(rank, world, rendezvous)
    while (task := connection.recv()) is not None:
        function, arguments = task
        try:
            connection.send((True, function(*arguments)))
        except BaseException:
            connection.send((False, traceback.format_exc()))
    os._exit(0)  # all tasks are done: peers that leave first cannot keep this one waiting


class Pool:
    """``world`` ranks; `run` calls a function on all of them together and returns what each returned."""

    def __init__(self, world: int) -> None:
        self.world = world
        context = mp.get_context("spawn")
        self.directory = tempfile.TemporaryDirectory()
        rendezvous = os.path.join(self.directory.name, "rendezvous")
        self.connections, self.processes = [], []
        for rank in range(world):
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(rank, world, rendezvous, theirs), daemon=True)
            process.start()
            theirs.close()
            self.connections.append(ours)
            self.processes.append(process)

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Every rank's result; an error on any rank is raised here with that rank's traceback."""
        outcomes = self.outcomes(function, *arguments)
        errors = [f"rank {rank}: {text}" for rank, (good, text) in enumerate(outcomes) if not good]
        assert not errors, "\n".join(errors)
        return [result for _, result in outcomes]

    def outcomes(self, function: Callable[..., Any], *arguments: Any) -> list[tuple[bool, Any]]:
        """For each rank whether it returned, and its result or its traceback."""
        for connection in self.connections:
            connection.send((function, arguments))
        outcomes = []
        for rank, connection in enumerate(self.connections):
            assert connection.poll(TIMEOUT), f"rank {rank} of {self.world} did not answer within {TIMEOUT} s"
            outcomes.append(connection.recv())
        return outcomes

    def close(self) -> None:
        for connection, process in zip(self.connections, self.processes, strict=True):
            if process.is_alive():
                connection.send(None)
        for process in self.processes:
            process.join(10)
            if process.is_alive():
                process.kill()
        self.directory.cleanup()
