"""Convert one session, into a dataset of its own or one that there is, by the options of that one."""

from publishing import convert_and_publish, options_of, parser, run


def main() -> None:
    command_line = parser(__doc__)
    command_line.add_argument("--eid", required=True, help="session id")
    arguments = command_line.parse_args()
    options = options_of(arguments.out)
    convert_and_publish(arguments, [arguments.eid], options, f"Session {arguments.eid}")


if __name__ == "__main__":  # worker processes import this file
    run(main)
