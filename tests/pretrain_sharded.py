"""`neds pretrain` for tests of FSDP without a GPU: accelerate shards models on accelerators only, this on CPU."""

import os
import sys

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

from neds_hf.cli.main import main

start = AcceleratorState.__init__


def start_sharded(self, *args, fsdp_plugin=None, **kwargs) -> None:
    start(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if fsdp_plugin is not None:
        self.fsdp_plugin = fsdp_plugin
        self.distributed_type = PartialState().distributed_type = DistributedType.FSDP
        if self.mixed_precision != "no":
            fsdp_plugin.set_mixed_precision(self.mixed_precision)


if __name__ == "__main__":
    AcceleratorState.__init__ = start_sharded
    status = main(["pretrain", *sys.argv[1:]])
    # Python's end may abort: DTensor's caches keep the group and its Gloo threads (see `leave_processes`).
    sys.stdout.flush()
    os._exit(status)
