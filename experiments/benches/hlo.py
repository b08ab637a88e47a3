"""Read the text of a compiled program: computations, instructions, the arrays that they make, and where in the source.

The text is what `jax.stages.Compiled.as_text()` returns, of any backend. What is read of it is what `roofline` counts:
shapes with the bytes that their layout takes, operands, called computations, trip counts, groups of devices.
"""

import math
import pathlib
import re
from collections.abc import Sequence
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[2]
BYTES = {"pred": 1, "token": 0, "opaque": 0}
"""Of an element; of other types the first number in their name is the bits."""
ARRAY = re.compile(r"([a-z]\w*)\[([\d,<=]*)\](\{[^}]*\})?")
START = re.compile(r"\s*(ROOT )?%?([\w.\-]+) = ")
COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
NAME = re.compile(r"%([\w.\-]+)")


class Array(NamedTuple):
    """An array in memory.

    Attributes:
      size: bytes, the tiles of a TPU filled up.
      space: 0 the device's memory; on a TPU others are on the chip.
    """

    dtype: str
    dims: tuple[int, ...]
    size: float
    space: int = 0

    @property
    def elements(self) -> int:
        """Return the number of elements."""
        return math.prod(self.dims)


class Instruction(NamedTuple):
    """One line: `arrays` are what it makes, those of a tuple one after the other; `text` is all behind the operands."""

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    inside: str
    text: str
    root: bool


Computation = dict[str, Instruction]


class Program(NamedTuple):
    """The computations of a program by name; `frames`: where in the source each stack frame is."""

    computations: dict[str, Computation]
    entry: str
    frames: dict[int, str]

    def called(self, instruction: Instruction, *keys: str) -> list[str]:
        """Return the computations that an instruction names by these attributes, such as `calls` and `body`."""
        names = []
        for key in keys:
            for match in re.finditer(rf"\b{key}=(?:%?([\w.\-]+)|\{{([^}}]*)\}})", instruction.text):
                names += [match[1]] if match[1] else NAME.findall(match[2])
        return [name for name in names if name in self.computations]

    def source(self, instruction: Instruction) -> str:
        """Return "file:line" of the project that an instruction comes from, "" where the text does not say."""
        match = re.search(r"stack_frame_id=(\d+)", instruction.text)
        if match:
            return self.frames.get(int(match[1]), "")
        match = re.search(r'source_file="([^"]*)" source_line=(\d+)', instruction.text)
        return f"{_short(match[1])}:{match[2]}" if match else ""


def parse(text: str) -> Program:
    """Return the program of a text; ValueError where it has no entry."""
    computations, entry, current = {}, "", None
    for line in text.splitlines():
        if current is None:
            head = COMPUTATION.match(line)
            if head:
                current = computations.setdefault(head[2], {})
                entry = head[2] if head[1] else entry
        elif line.startswith("}"):
            current = None
        elif made := _instruction(line):
            current[made.name] = made
    if not entry:
        raise ValueError("text of a program: it has no ENTRY")
    return Program(computations, entry, _frames(text.partition("\n%")[0].partition("\nENTRY")[0]))


def arrays(text: str) -> tuple[Array, ...]:
    """Return the arrays of a type such as "(f32[8,4]{1,0:T(8,128)S(1)}, s32[])", those of tuples inside too."""
    return tuple(_array(*match.groups()) for match in ARRAY.finditer(text))


def attribute(text: str, name: str) -> list[int]:
    """Return the numbers of an attribute: "lhs_contracting_dims={1,2}" -> [1, 2], also as JSON has them."""
    match = re.search(rf'\b{name}(?:=|": ?)[\[{{]([^\]}}]*)[\]}}]', text)
    return [int(n) for n in re.findall(r"\d+", match[1])] if match else []


def arrays_of(computation: Computation, names: Sequence[str]) -> list[Array]:
    """Return the arrays that these instructions of a computation make."""
    return [array for name in names if name in computation for array in computation[name].arrays]


def inputs(one: Instruction, computation: Computation) -> list[Array]:
    """Return the arrays that an instruction takes."""
    return arrays_of(computation, one.operands)


def trips(program: Program, loop: Instruction) -> int:
    """Return how often a loop runs: as its compiler says, else the largest number that its condition has."""
    match = re.search(r'"known_trip_count": ?\{"n": ?"(\d+)"', loop.text)
    if match:
        return int(match[1])
    numbers = [1]
    for name in program.called(loop, "condition"):
        constants = [i.inside for i in program.computations[name].values() if i.opcode == "constant"]
        numbers += [int(n) for n in constants if n.isdigit()]
    return max(numbers)


def group(instruction: Instruction, devices: int) -> int:
    """Return how many devices exchange with each other; `devices` where the text does not say."""
    match = re.search(r"replica_groups=\{\{([\d,]+)\}", instruction.text)
    if match:
        return len(match[1].split(","))
    match = re.search(r"replica_groups=\[\d+,(\d+)\]", instruction.text)
    if match:
        return int(match[1])
    match = re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", instruction.text)
    if not match:
        return devices
    sizes = dict(re.findall(r"'([^']*)'=(\d+)", match[1]))
    return math.prod(int(sizes[axis]) for axis in re.findall(r"'([^']*)'", match[2]) if axis in sizes)


def _instruction(line: str) -> Instruction | None:
    head = START.match(line)
    if not head:
        return None
    rest = line[head.end() :]
    end = _closing(rest, 0) if rest.startswith("(") else rest.find(" ")
    made, rest = rest[:end], rest[end:].lstrip()
    start = rest.find("(")
    end = _closing(rest, start)
    inside = rest[start + 1 : end - 1]
    return Instruction(
        head[2], rest[:start], arrays(made), tuple(NAME.findall(inside)), inside, rest[end:], bool(head[1])
    )


def _closing(text: str, start: int) -> int:
    """Return the place behind the parenthesis that closes the one at `start`."""
    depth = 0
    for match in re.finditer(r"[()]", text[start:]):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return start + match.end()
    return len(text)


def _array(dtype: str, dims: str, layout: str | None) -> Array:
    sizes = tuple(int(n) for n in re.findall(r"\d+", dims))
    layout = layout or ""
    space = re.search(r"S\((\d+)\)", layout)
    order, tile = re.match(r"\{([\d,]*)", layout), re.search(r":T\(([\d,]+)\)", layout)
    filled = list(sizes)
    if order and tile and order[1]:
        for axis, side in zip(order[1].split(","), reversed(tile[1].split(",")), strict=False):
            filled[int(axis)] = -(-filled[int(axis)] // int(side)) * int(side)
    bits = re.search(r"\d+", dtype)
    width = BYTES[dtype] if dtype in BYTES else int(bits[0]) / 8 if bits else 1
    return Array(dtype, sizes, math.prod(filled) * width, int(space[1]) if space else 0)


def _frames(head: str) -> dict[int, str]:
    """Return where each stack frame of a program's head is in the project, else in what calls that."""
    files = dict(re.findall(r'^(\d+) "(.*)"$', head.partition("FileNames")[2].partition("FunctionNames")[0], re.M))
    places = re.findall(r"^(\d+) \{file_name_id=(\d+) .*?\bline=(\d+)", head, re.M)
    places = {number: (files.get(file, ""), line) for number, file, line in places}
    frames = re.findall(r"^(\d+) \{file_location_id=(\d+)(?: parent_frame_id=(\d+))?\}", head, re.M)
    parents = {int(number): int(parent or 1) - 1 for number, _, parent in frames}
    at = {int(number): places.get(place, ("", "0")) for number, place, _ in frames}
    named = {}
    for number in at:
        inner = number
        while inner in at and str(ROOT) not in at[inner][0] and parents.get(inner):
            inner = parents[inner]
        file, line = at.get(inner, at[number])
        named[number] = f"{_short(file)}:{line}"
    return named


def _short(path: str) -> str:
    return path.removeprefix(f"{ROOT}/")
