"""Processes that tests start are forked from one that has imported large libraries, once for all of them."""

import multiprocessing

SERVER = multiprocessing.get_context("forkserver")
# What reads nothing of the environment, which each process has of its own.
SERVER.set_forkserver_preload(
    [
        *("pandas", "pyarrow.parquet", "scipy.optimize", "torch"),
        *("torch._dynamo", "torch.distributed.fsdp", "torch.distributed.tensor"),
    ]
)
