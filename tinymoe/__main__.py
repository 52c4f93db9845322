"""python -m tinymoe: lists the commands."""

import ast
import sys
from pathlib import Path

from .errors import UserError, run

COMMANDS = ("train", "generate", "evaluate", "recipes", "study", "golden", "bench", "check")


def summary(command: str) -> str:
    """What a command does: of the first line of its docstring what follows `: `. Read without importing it."""
    path = Path(__file__).parent / command
    file = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
    return (ast.get_docstring(ast.parse(file.read_bytes())) or "").partition("\n")[0].partition(": ")[2]


def main(argv: list[str] | None = None) -> int:
    given = sys.argv[1:] if argv is None else argv
    if given and given[0] not in ("-h", "--help"):
        name = given[0] if given[0] in COMMANDS else "NAME"
        raise UserError(f"{given[0]!r} is not taken here; commands are run as python -m tinymoe.{name}, with a dot")
    print("Commands, each run as python -m tinymoe.NAME; with --help it says what can be given:\n")
    for name in COMMANDS:
        print(f"  {name:10}{summary(name)}")
    return 0


if __name__ == "__main__":
    run(main)
