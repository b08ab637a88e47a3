"""One program for all commands: `python -m experiments` lists them, `python -m experiments COMMAND ...` runs one.

Installed, it is the program `scfm`: `scfm embed --workdir=W --input=x.h5ad --output=y.h5ad`.
"""

import ast
import difflib
import pathlib
import runpy
import sys

FOLDER = pathlib.Path(__file__).parent
HELP = ("help", "--help", "-help", "--helpshort", "--helpfull", "-h", "-?")


def commands() -> dict[str, str]:
    """Return {name: one-line purpose} of all commands, read without importing them."""
    paths = sorted(path for path in FOLDER.glob("[!_]*.py") if path.stem != "cli")
    docs = {path.stem: ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "" for path in paths}
    return {name: doc.partition("\n")[0] for name, doc in docs.items()}


def listing() -> str:
    """Return the commands and their purposes as text."""
    table = commands()
    width = max(map(len, table))
    lines = [f"  {name:{width}}  {purpose}" for name, purpose in table.items()]
    return "\n".join(["commands, each of which tells its flags with --help:", "", *lines])


def main() -> None:
    """Run the command that the first argument names, with the others; without any list the commands."""
    name, *arguments = sys.argv[1:] or ["help"]
    if name in HELP:
        print(listing())
        sys.exit(0)
    table = commands()
    if name not in table:
        near = difflib.get_close_matches(name, table, 3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(table)}"
        print(f"error: {name}: no such command; {hint}", file=sys.stderr)
        sys.exit(2)
    sys.argv = [str(FOLDER / f"{name}.py"), *arguments]
    runpy.run_module(f"experiments.{name}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
