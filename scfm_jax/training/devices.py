"""What devices can do at most, by their vendors' data sheets: the one table that speeds are compared with."""

from typing import NamedTuple


class Device(NamedTuple):
    """One device, by part of JAX's `device_kind`.

    Attributes:
      tflops: dense bf16 (V100, T4: fp16) matrix products, TFLOP/s.
      float32: of float32 products at JAX's default precision: TF32 on NVIDIA's, one bf16 pass on TPUs.
      vector: tera operations on vectors of float32 a second; TPUs': not published, 4 x 8 x 128 lanes at the clock.
      memory, bandwidth: GB of it, GB/s to and from it.
      link: GB/s that one device sends to the others of its machine or pod, all links together.
    """

    tflops: float
    float32: float = 0.0
    vector: float = 0.0
    memory: float = 0.0
    bandwidth: float = 0.0
    link: float = 0.0


DEVICES = {
    "V100": Device(125),
    "T4": Device(65),
    "A10": Device(125),
    "A10G": Device(70),
    "A100": Device(312),
    "L4": Device(121),
    "L40": Device(181),
    "L40S": Device(362),
    "H100 PCIe": Device(756),
    "H100": Device(989, 494, 33, 80, 3350, 450),
    "H200": Device(989, 494, 33, 141, 4800, 450),
    "GH200": Device(989),
    "B200": Device(2250),
    "MI250X": Device(383),
    "MI300X": Device(1307),
    "TPU v2": Device(45),
    "TPU v3": Device(123),
    "TPU v4": Device(275),
    "TPU v5 lite": Device(197, 197, 6, 16, 819, 200),
    "TPU v5e": Device(197, 197, 6, 16, 819, 200),
    "TPU v5p": Device(459, 459, 14, 95, 2765, 600),
    "TPU v5": Device(459, 459, 14, 95, 2765, 600),
    "TPU v6 lite": Device(918, 918, 14, 32, 1640, 400),
    "TPU v6e": Device(918, 918, 14, 32, 1640, 400),
    "TPU7x": Device(2307),
}
"""Devices without a bandwidth are there for the MFU of a run alone."""


def find(kind: str) -> Device | None:
    """Return the device of the longest name in a `device_kind`; None for one that is not in the table."""
    names = [name for name in DEVICES if name in kind]
    return DEVICES[max(names, key=len)] if names else None
