"""A pool of processes with one thread each."""

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from multiprocessing import get_context
from typing import Any

import torch


def start_worker() -> None:
    """Limit torch to one thread; called at the start of each worker process."""
    torch.set_num_threads(1)


class Workers:
    """A pool of worker processes, used as a context manager."""

    def __init__(self, count: int):
        self.pool = ProcessPoolExecutor(count, mp_context=get_context("spawn"), initializer=start_worker)

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown(wait=True, cancel_futures=True)

    def each(
        self,
        title: str,
        function: Callable,
        jobs: Iterable[tuple],
        work: Callable[[tuple], float] = lambda job: 1.0,
    ) -> Iterator[tuple[tuple, Any]]:
        """Run function(*job) for each job; yield (job, result) as they finish, and print the progress.

        Args:
            title: name of the jobs, for the printed progress.
            function: run in the worker processes, which must be able to import it.
            jobs: a tuple of arguments for each call.
            work: returns a job's relative cost, to start the longest first and estimate the time left."""
        jobs = sorted(jobs, key=work, reverse=True)
        total, done, begin, shown = sum(map(work, jobs)), 0.0, time.perf_counter(), 0.0
        waiting = {self.pool.submit(function, *job): job for job in jobs}
        while waiting:
            for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                job = waiting.pop(future)
                yield job, future.result()
                done += work(job)
            if (now := time.perf_counter()) - shown > 20 or not waiting:
                shown, elapsed = now, now - begin
                left = elapsed * (total / done - 1)
                print(
                    f"  {title}: {done / total:4.0%}, {elapsed / 60:.1f} min, {left / 60:.1f} left",
                    flush=True,
                )
