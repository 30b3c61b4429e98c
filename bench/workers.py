"""A process a core, one thread each."""

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from multiprocessing import get_context
from typing import Any

import torch


def start_worker() -> None:
    torch.set_num_threads(1)


class Workers:
    """A pool; `each(function, jobs)` yields (job, result) as they come and prints how far it is."""

    def __init__(self, count: int):
        self.pool = ProcessPoolExecutor(count, mp_context=get_context("spawn"), initializer=start_worker)

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown(wait=True, cancel_futures=True)

    def each(
        self,
        what: str,
        function: Callable,
        jobs: Iterable[tuple],
        work: Callable[[tuple], float] = lambda job: 1.0,
    ) -> Iterator[tuple[tuple, Any]]:
        jobs = sorted(jobs, key=work, reverse=True)
        whole, done, begin, shown = sum(map(work, jobs)), 0.0, time.perf_counter(), 0.0
        waiting = {self.pool.submit(function, *job): job for job in jobs}
        while waiting:
            for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                job = waiting.pop(future)
                yield job, future.result()
                done += work(job)
            if (now := time.perf_counter()) - shown > 20 or not waiting:
                shown, took = now, now - begin
                left = took * (whole / done - 1)
                print(f"  {what}: {done / whole:4.0%}, {took / 60:.1f} min, {left / 60:.1f} left", flush=True)
