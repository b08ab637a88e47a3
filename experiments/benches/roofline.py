"""How long a compiled program takes at least: each kernel at the speed of its arithmetic or of its memory.

A kernel is what the program starts as one: a fusion, a product, a convolution, a library's call, a copy. It does so
many FLOPs of matrix products and operations on vectors, and reads and writes so many bytes of the device's memory; it
takes at least the longer of the two times. What loops repeat counts as often as they run, of the branches of a
condition the longest. Nothing is said of caches, of kernels' own efficiency and of the time to start them, so this is
a floor, and an MFU made of it a ceiling. Exchanges between devices are counted apart, as rings that fill all links.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from experiments.benches.arithmetic import FREE, Cost, arithmetic
from experiments.benches.hlo import Array, Computation, Instruction, Program, arrays_of, group, inputs, trips
from scfm_jax.training.devices import Device

VIEWS = ("bitcast", "reshape", "get-tuple-element")
SLICES = ("slice", "dynamic-slice", "gather")
EXCHANGES = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute", "collective-broadcast")
MATRIX = re.compile(r"cublas|gemm|matmul")
ATTENTION = re.compile(r"fmha|flash|splash|attention")


class Kernel(NamedTuple):
    """A kernel that runs `times` times; `apart`: it moves data beside what the others do."""

    name: str
    kind: str
    times: int
    cost: Cost
    source: str
    apart: bool = False


class Exchange(NamedTuple):
    """An exchange between devices: bytes that each sends in one run, and of how many devices it is."""

    kind: str
    times: int
    size: float
    among: int


class Walk:
    """All kernels, exchanges and loops of a program, of the longest branches of its conditions.

    `devices`: of the whole program. `on_chip`: memory other than 0 is not the device's, as on a TPU.
    """

    def __init__(self, program: Program, device: Device, devices: int = 1, on_chip: bool = False) -> None:
        self.program, self.device, self.devices, self.on_chip = program, device, devices, on_chip
        self.kernels: list[Kernel] = []
        self.exchanges: list[Exchange] = []
        self.loops: list[tuple[str, int, str]] = []
        for one in self.below(program.entry, 1):
            {Kernel: self.kernels, Exchange: self.exchanges}.get(type(one), self.loops).append(one)

    def seconds(self) -> float:
        """Return the time of all kernels one after the other, but not less than their bytes take."""
        working = sum(k.times * k.cost.seconds(self.device) for k in self.kernels if not k.apart)
        return max(working, sum(k.times * k.cost.size for k in self.kernels) / self.device.bandwidth / 1e9)

    def exchange_seconds(self) -> float:
        """Return the time of all exchanges, were nothing done meanwhile."""
        return sum(e.times * e.size for e in self.exchanges) / self.device.link / 1e9 if self.device.link else 0.0

    def below(self, name: str, times: int) -> Iterator:
        """Yield kernels, exchanges and loops of a computation that runs `times` times."""
        computation = self.program.computations[name]
        for one in computation.values():
            called = self.program.called(one, "to_apply", "calls", "called_computations")
            if one.opcode == "while":
                number = trips(self.program, one)
                yield one.name, times * number, self.program.source(one)
                for part in self.program.called(one, "condition", "body"):
                    yield from self.below(part, times * number)
            elif one.opcode == "conditional":
                yield from self.longest(one, times)
            elif one.opcode in ("call", "async-start") and called:
                yield from self.below(called[0], times)
            elif one.opcode not in FREE and not one.opcode.endswith(("-done", "-update")):
                yield from self.kernel(one, computation, times)

    def longest(self, one: Instruction, times: int) -> list:
        """Return what the branch of a condition that takes longest has."""
        keys = ("true_computation", "false_computation", "branch_computations")
        branches = [list(self.below(name, times)) for name in self.program.called(one, *keys)]

        def seconds(branch: list) -> float:
            return sum(k.times * k.cost.seconds(self.device) for k in branch if isinstance(k, Kernel))

        return max(branches, key=seconds, default=[])

    def kernel(self, one: Instruction, computation: Computation, times: int) -> Iterator:
        """Yield an instruction as a kernel, or the exchanges that it is or holds."""
        inner = [name for name in self.program.called(one, "calls") if one.opcode == "fusion"]
        parts = [(one, computation)]
        parts += [
            (i, self.program.computations[name]) for name in inner for i in self.program.computations[name].values()
        ]
        shared = [part for part in parts if part[0].opcode.removesuffix("-start") in EXCHANGES]
        for exchange, place in shared:
            yield self.exchange(exchange, place, times)
        if not shared:
            cost = arithmetic(self.program, one, computation)._replace(size=self.moved(one, computation))
            apart = one.opcode.endswith("-start")
            yield Kernel(one.name, kind(self.program, one), times, cost, self.program.source(one), apart)

    def exchange(self, one: Instruction, computation: Computation, times: int) -> Exchange:
        """Return an exchange with the bytes that a ring of its devices sends."""
        name, n = one.opcode.removesuffix("-start"), group(one, self.devices)
        size = sum(array.size for array in inputs(one, computation))
        factor = {"all-reduce": 2 * (n - 1) / n, "all-gather": n - 1, "collective-permute": 1}.get(name, (n - 1) / n)
        return Exchange(name, times, factor * size, n)

    # -------------------------------------------------------------------------------------------------------- bytes

    def moved(self, one: Instruction, computation: Computation) -> float:
        """Return the bytes of the device's memory that a kernel reads and writes."""
        if one.opcode == "fusion":
            return self.fused(one, computation, self.program.called(one, "calls")[0])
        opcode, made = one.opcode.removesuffix("-start"), self.held(one.arrays[:1])
        if one.opcode.endswith("-start"):  # (copy, original, ...) or (original, copy, ...): whichever is the smaller
            ends = (one.arrays[0], *inputs(one, computation)[:1])
            return min(a.size for a in ends) * sum(not self.on_chip or a.space == 0 for a in ends)
        if opcode in SLICES:
            return 2 * made
        if opcode in ("dynamic-update-slice", "scatter"):
            place = 1 if opcode == "dynamic-update-slice" else 2
            return 2 * self.held(arrays_of(computation, one.operands[place : place + 1]))
        if opcode == "custom-call":  # what is behind the result is room to work in
            made = self.held(a for a in one.arrays if len(one.arrays) == 1 or a.dtype not in ("s8", "u8"))
        elif len(one.arrays) > 1:
            made = self.held(one.arrays)
        return made + self.held(inputs(one, computation))

    def fused(self, one: Instruction, computation: Computation, name: str) -> float:
        """Return the bytes of a fusion: of a parameter that is only cut from, and of a buffer, what is touched."""
        inside = self.program.computations[name]
        users: dict[str, list[Instruction]] = {}
        for instruction in inside.values():
            for operand in dict.fromkeys(instruction.operands):
                users.setdefault(operand, []).append(instruction)
        parameters = [i for i in inside.values() if i.opcode == "parameter"]
        total = 0.0
        for parameter in parameters:
            outer = arrays_of(computation, one.operands[int(parameter.inside) : int(parameter.inside) + 1])
            total += min(self.held(outer), self.touched(parameter, users)) if outer else 0.0
        root = next((i for i in inside.values() if i.root), None)
        ends = [inside[n] for n in root.operands] if root and root.opcode == "tuple" else [root]
        for end, array in zip(ends, one.arrays, strict=False):
            total += self.written(end, inside, array)
        return total

    def touched(self, one: Instruction, users: dict[str, list[Instruction]]) -> float:
        """Return the bytes of a fusion's parameter that its users read."""
        total = 0.0
        for user in users.get(one.name, ()):
            if user.opcode in VIEWS:
                total += self.touched(user, users)
            elif user.opcode in SLICES and user.operands[0] == one.name:
                total += user.arrays[0].size
            elif user.opcode != "dynamic-update-slice" or one.name in user.operands[1:]:
                return math.inf
        return total

    def written(self, end: Instruction | None, inside: Computation, array: Array) -> float:
        """Return the bytes that a fusion writes of one of its results, where that is a buffer what is put into it."""
        while end is not None and end.opcode in VIEWS and end.operands:
            end = inside.get(end.operands[0])
        if end is not None and end.opcode == "dynamic-update-slice":
            return min(self.held((array,)), sum(a.size for a in arrays_of(inside, end.operands[1:2])))
        return self.held((array,))

    def held(self, arrays) -> float:
        """Return the bytes of those arrays that are in the device's memory."""
        return sum(a.size for a in arrays if not self.on_chip or a.space == 0)


def kind(program: Program, one: Instruction) -> str:
    """Return what a kernel is to its reader: attention, matmul, convolution, fusion, copy, or its own name."""
    target = re.search(r'custom_call_target="([^"]*)"', one.text)
    if target:
        patterns = (("attention", ATTENTION), ("matmul", MATRIX), ("convolution", re.compile("conv")))
        return next((name for name, pattern in patterns if pattern.search(target[1])), f"call {target[1]}")
    opcodes = {one.opcode}
    for name in program.called(one, "calls"):
        for part in program.computations[name].values():
            opcodes.add("matmul" if part.opcode == "convolution" and not _spatial(part) else part.opcode)
    if one.opcode == "convolution" and not _spatial(one):
        return "matmul"
    for name, opcode in (("matmul", "dot"), ("matmul", "matmul"), ("convolution", "convolution")):
        if opcode in opcodes:
            return name
    return one.opcode.removesuffix("-start")


def _spatial(one: Instruction) -> bool:
    """Return whether a convolution slides over anything; a TPU's matrix products are ones that do not."""
    labels, window = re.search(r"dim_labels=\w+->(\w+)", one.text), re.search(r"window=\{size=([\dx]+)", one.text)
    if not window or ("stride=" in one.text and "lhs_dilate=" in one.text):
        return False
    axes = sorted(label for label in labels[1] if label.isdigit())
    made = [one.arrays[0].dims[labels[1].index(axis)] for axis in axes]
    return any(n > 1 and int(taps) > 1 for n, taps in zip(made, window[1].split("x"), strict=True))
