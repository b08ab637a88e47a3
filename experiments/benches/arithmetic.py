"""What the instructions of a compiled program compute: FLOPs of products and convolutions, operations on vectors."""

import math
import re
from typing import NamedTuple

import numpy as np

from experiments.benches.hlo import Computation, Instruction, Program, attribute, inputs
from scfm_jax.training.devices import Device

FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id")
FREE += ("optimization-barrier", "opt-barrier", "domain", "add-dependency", "get-dimension-size")
SLOW = ("exponential", "exponential-minus-one", "log", "log-plus-one", "logistic", "tanh", "erf", "power", "sqrt")
SLOW += ("rsqrt", "cbrt", "sine", "cosine", "tan", "atan2")
SPECIAL = 8
"""Operations on vectors that a transcendental function takes the time of."""
QUICK = ("copy", "broadcast", "iota", "transpose", "reshape", "slice", "concatenate", "pad", "reverse", "gather")
QUICK += ("scatter", "dynamic-slice", "dynamic-update-slice")


class Cost(NamedTuple):
    """FLOPs of matrix products, operations on vectors, bytes of the device's memory; of one run of a kernel."""

    matrix: float = 0.0
    vector: float = 0.0
    size: float = 0.0
    wide: bool = False

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*(a + b for a, b in zip(self[:3], other[:3], strict=True)), self.wide or other.wide)

    def seconds(self, device: Device) -> float:
        """Return the longer of the times of arithmetic and of memory; `wide` products are of float32."""
        rate = device.float32 if self.wide else device.tflops
        return max(self.matrix / rate / 1e12 + self.vector / device.vector / 1e12, self.size / device.bandwidth / 1e9)


def arithmetic(program: Program, one: Instruction, computation: Computation) -> Cost:
    """Return the arithmetic of an instruction, of a fusion that of all in it."""
    if one.opcode == "fusion":
        inside = program.computations[program.called(one, "calls")[0]]
        return sum((arithmetic(program, part, inside) for part in inside.values()), Cost())
    elements = sum(array.elements for array in one.arrays[:1])
    if one.opcode in ("dot", "convolution", "custom-call"):
        flops, like = _products(one, computation)
        return Cost(matrix=flops, wide=like in ("f32", "f64"))
    if one.opcode in FREE or one.opcode in QUICK or one.opcode.endswith("-start"):
        return Cost()
    if one.opcode in ("reduce", "reduce-window"):
        return Cost(vector=sum(a.elements for a in inputs(one, computation)[:1]))
    if one.opcode == "sort":
        return Cost(vector=elements * math.log2(max(2, one.arrays[0].dims[-1] if one.arrays[0].dims else 2)))
    return Cost(vector=elements * (SPECIAL if one.opcode in SLOW else 1))


def _products(one: Instruction, computation: Computation) -> tuple[float, str]:
    """Return (FLOPs, type of what is multiplied) of a product, a convolution or a library's call of one."""
    taken, made = inputs(one, computation), one.arrays[0]
    like = taken[0].dtype if taken else ""
    if "dim_labels=" in one.text:
        shapes = [array.dims for array in (*taken[:2], made)]
        if "BackwardInput" in one.text:
            shapes = [made.dims, taken[1].dims, taken[0].dims]
        elif "BackwardFilter" in one.text:
            shapes = [taken[0].dims, made.dims, taken[1].dims]
        return convolution(*shapes, one.text), like
    if "fmha" in one.text:
        weights = attribute(one.text.partition("intermediate_tensor_shape")[2], "dimensions")
        passes = 5 if "Backward" in one.text else 2
        return 2.0 * passes * math.prod(weights) * taken[0].dims[-1] if weights else 0.0, like
    if one.opcode == "dot" or "dot_dimension_numbers" in one.text:
        dims = attribute(one.text, "lhs_contracting_dims") or attribute(one.text, "lhs_contracting_dimensions")
        return 2.0 * made.elements * math.prod(taken[0].dims[axis] for axis in dims), like
    return 0.0, like


def convolution(x: tuple, kernel: tuple, made: tuple, text: str) -> float:
    """Return the FLOPs of a convolution of arrays of these sizes: two for each input that is no padding."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", text)
    sizes = [
        dict(zip(names, dims, strict=True)) for names, dims in zip(labels.groups(), (x, kernel, made), strict=True)
    ]
    pairs = 1
    for i, axis in enumerate(sorted(label for label in labels[1] if label.isdigit())):
        pairs *= _pairs(sizes[0][axis], sizes[1][axis], sizes[2][axis], i, text)
    groups = re.search(r"batch_group_count=(\d+)", text)
    return 2.0 * pairs * sizes[2]["f"] * sizes[1]["i"] * sizes[0]["b"] / (int(groups[1]) if groups else 1)


def _pairs(x: int, kernel: int, made: int, axis: int, text: str) -> int:
    """Return how often a kernel's weight meets an input along one axis, padding and the gaps of a dilation left out."""
    window = re.search(r"window=\{([^}]*)\}", text)
    options = dict(re.findall(r"(\w+)=(\S+)", window[1])) if window else {}

    def value(name: str, default: str) -> str:
        return options[name].split("x")[axis] if name in options else default

    stride, gaps, spread = (int(value(name, "1")) for name in ("stride", "lhs_dilate", "rhs_dilate"))
    low = int(value("pad", "0_0").split("_")[0])
    places = np.arange(made)[:, None] * stride + np.arange(kernel) * spread - low
    return int(((places >= 0) & (places <= (x - 1) * gaps) & (places % gaps == 0)).sum())
