"""Convert the 84 repeated-site sessions of the paper, 10 of them held out, and publish them."""

from publishing import convert_and_publish, opener, parser, run

from neds_hf.data.one_cache import list_sessions
from neds_hf.data.origin import repeated_site_sessions
from neds_hf.data.schema import ConversionOptions


def main() -> None:
    arguments = parser(f"{__doc__} With --alf: all sessions of that cache.").parse_args()
    paper = repeated_site_sessions()
    sessions = [*paper["pretrain"], *paper["held_out"]]
    if arguments.alf:
        sessions = list_sessions(opener(arguments)())
    message = f"{len(sessions)} sessions"
    convert_and_publish(arguments, sessions, ConversionOptions(), message, paper["held_out"])


if __name__ == "__main__":  # worker processes import this file
    run(main)
