"""``neds COMMAND ...``: finds the command's file and runs it."""

import gc
import importlib
import io
import os
import re
import sys
import time
from datetime import timedelta

from neds_hf.errors import NEDSError

COMMANDS = {
    "simulate": "simulate IBL-like mice as ALF session folders",
    "build": "convert recordings (ALF folders, trial arrays, the public IBL server) to Parquet",
    "pretrain": "train a model on many sessions",
    "finetune": "adapt a model to a new animal",
    "average": "fine-tunings of several seeds to one model",
    "search": "draw settings, train a model with each, keep the best",
    "evaluate": "score a model on a split of a dataset",
    "report": "any runs side by side, on one HTML page",
    "regions": "brain regions from the embeddings of units",
    "baselines": "fit and score what a lab would use instead, on the same trials",
    "predict": "write predicted spikes or behaviours",
    "convert": "a checkpoint of the published code to a model folder",
    "push": "a model or dataset folder to the Hub, in one commit",
    "demo": "the whole way on simulated mice, with a report",
}

# How Gloo says that another process of the group has ended.
LEFT_ALONE = re.compile(r"gloo/transport/.*Connection")


def main(argv: list[str] | None = None) -> int:
    """Run one command; return its exit status: 0 fine, 1 another of the processes that train together has ended,
    2 bad input or unknown command, 130 interrupted."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        print("usage: neds COMMAND [options]      (neds COMMAND --help says more)\n")
        print("\n".join(f"  {name:<{width}}  {what}" for name, what in COMMANDS.items()))
        return 0
    name, *rest = argv
    if name not in COMMANDS:
        print(f"neds: no command {name!r}; there are: {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    return run(name, rest)


def run(name: str, argv: list[str] | None = None) -> int:
    """Run the command ``name`` as ``neds NAME`` and the file of that name in ``examples/`` both do."""
    argv = sys.argv[1:] if argv is None else argv
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # where it has no ², better R? than no table
    try:
        importlib.import_module(f"neds_hf.cli.{name}").main(argv)
        return 0
    except NEDSError as error:
        say(f"neds {name}: {error}")
        return 2
    except OSError as error:  # such as a full disc
        if error.errno is None:
            raise
        say(f"neds {name}: {error}")
        return 2
    except Exception as error:
        if not LEFT_ALONE.search(str(error)):
            raise
        say(f"neds {name}: another of the processes that train together has ended", unless_another=True)
        return 1
    except KeyboardInterrupt:
        print(f"neds {name}: stopped; run it again to resume", file=sys.stderr)
        return 130
    finally:
        leave_processes()


def say(error: str, unless_another: bool = False) -> None:
    """Print an error; of the processes that `torchrun` started, the first that has this one does, or, with
    `unless_another`, the first that has any."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        from torch.distributed import TCPStore

        where = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        attempt = os.environ["TORCHELASTIC_RESTART_COUNT"]
        try:
            store = TCPStore(*where, timeout=timedelta(seconds=3))
            number = store.add(f"neds errors {attempt}", 1)
            same = store.add(f"neds errors {attempt} {error}", 1)
            if (number if unless_another else same) > 1:
                return
        except RuntimeError:  # the store has ended, and so have the others
            pass
    print(error, file=sys.stderr)


def leave_processes() -> None:
    """End the group of the processes that trained together, where they talked through Gloo.

    Its threads free tensors after a collective, and one that does so while Python ends aborts its process. They
    end with the last reference to the group, which models hold too, in cycles. Whoever drops that reference holds
    Python's lock while it waits for them, so that they get time to free what the last collective left before.
    """
    torch = sys.modules.get("torch")  # not every command needs it
    if torch is None or not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return
    if torch.distributed.get_backend() == "gloo":
        time.sleep(0.5)
        torch.distributed.destroy_process_group()
        gc.collect()
