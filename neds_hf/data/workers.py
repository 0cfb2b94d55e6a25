"""One task for many sessions, in several processes."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from neds_hf.errors import NEDSError

Item, Result = TypeVar("Item"), TypeVar("Result")


def outcomes(
    task: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Iterator[tuple[Item, Result]]:
    """Every item with what the task returns for it, as they are done; in this process where one is enough.

    Raises:
        NEDSError: A process was killed.
    """
    items = list(items)
    if min(workers, len(items)) <= 1:
        for item in items:
            yield item, task(item)
        return
    # Not forked: the parent has running threads (Arrow, progress bar) that a fork would break.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(items)), context, initializer=_end_with_parent) as pool:
        futures = {pool.submit(task, item): item for item in items}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool:
            raise NEDSError(
                "a worker process was ended, probably for want of memory: --workers 1 needs less; "
                "run again to go on"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """Let this process end when its parent is killed, which it would otherwise wait for ever."""

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
