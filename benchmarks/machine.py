"""What the machine can do at most, and timing things beside it.

Everything is timed in turns, and of the floor as of the thing the best of several times is taken: on a machine
that others use too, that is what either takes while it is left alone.
"""

import re
import resource
import time
from collections.abc import Callable
from pathlib import Path

import torch

SIZE = {"cpu": 2048, "cuda": 8192}  # rows of the square matrices that the rate is measured with


def seconds(function: Callable[[], object], device: str = "cpu") -> float:
    """Time of one call."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def best_seconds(
    functions: dict[str, Callable[[], object]],
    rounds: int,
    device: str = "cpu",
    before: Callable[[], object] = lambda: None,
) -> dict[str, float]:
    """Shortest time of one call of each; they take turns, after one call each that does not count.

    `before` is called ahead of each, and not timed.
    """
    times = {name: [] for name in functions}
    for _ in range(rounds + 1):
        for name, function in functions.items():
            before()
            times[name].append(seconds(function, device))
    return {name: min(of_one[1:]) for name, of_one in times.items()}


def matmul(dtype: torch.dtype, device: str = "cpu") -> Callable[[], torch.Tensor]:
    """A product of two square matrices of `SIZE[device]` rows, to be timed."""
    size = SIZE[device]
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    result = torch.empty_like(left)
    return lambda: torch.mm(left, right, out=result)


def operations_of_matmul(device: str = "cpu") -> float:
    """Operations (a multiplication or an addition each) of one `matmul`."""
    return 2.0 * SIZE[device] ** 3


def matmul_rate(dtype: torch.dtype, device: str = "cpu", rounds: int = 10) -> float:
    """Operations per second of the product of two large matrices, on all threads that torch uses."""
    best = best_seconds({"matmul": matmul(dtype, device)}, rounds, device)["matmul"]
    return operations_of_matmul(device) / best


def memory_bandwidth(megabytes: int = 256, rounds: int = 10) -> float:
    """Bytes per second that a copy in memory reads and writes, both counted."""
    source = torch.ones(megabytes * 2**20, dtype=torch.uint8)
    target = torch.empty_like(source)
    return 2 * source.numel() / best_seconds({"copy": lambda: target.copy_(source)}, rounds)["copy"]


def peak_bytes() -> int:
    """Largest resident size that this process has had since it began its program."""
    status = Path("/proc/self/status")
    if status.exists():  # a child's ru_maxrss would begin at its parent's
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS
