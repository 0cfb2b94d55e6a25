"""What starts two processes that train together."""

import sys

# By its address, as not every machine's name leads to it.
PLACE = "--nproc_per_node 2 --standalone --local-addr 127.0.0.1"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", *PLACE.split()]
