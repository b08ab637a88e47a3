"""Matrix product and GELU with gradients written down, as a CPU works them out fastest.

A kernel's gradient xᵀd needs a transpose of one operand. Left to itself XLA may transpose the wider one, and takes from
a third to five times longer; here it is the narrower. Of the GELU only its input is kept.
"""

import jax
import jax.numpy as jnp

from scfm_jax.layers.platform import platform
from scfm_jax.types import Array


def dot_general(x: Array, kernel: Array, dimensions: tuple, precision=None, preferred_element_type=None) -> Array:
    """Return x @ kernel, for `flax.linen.Dense`. [..., D], [D, F] -> [..., F]"""
    del precision, preferred_element_type
    if dimensions != (((x.ndim - 1,), (0,)), ((), ())):
        raise ValueError(f"dimensions {dimensions}: must be those of [..., D] @ [D, F]")
    return product(x, kernel)


@jax.custom_vjp
def product(x: Array, kernel: Array) -> Array:
    """Return x @ kernel. [..., D], [D, F] -> [..., F]"""
    return x @ kernel


def _backward(saved: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    x, kernel = saved
    rows, pulls = (y.reshape(-1, y.shape[-1]) for y in (x, grad))
    if platform() == "cpu" and x.shape[-1] > grad.shape[-1]:
        transposed = jax.lax.optimization_barrier(pulls.T)
        by_kernel = jax.lax.optimization_barrier(transposed @ rows).T
    else:
        by_kernel = jnp.einsum("td,tf->df", rows, pulls)
    return jnp.einsum("...f,df->...d", grad, kernel), by_kernel


product.defvjp(lambda x, kernel: (x @ kernel, (x, kernel)), _backward)


@jax.custom_vjp
def gelu(x: Array) -> Array:
    """Return the exact GELU, by the error function."""
    return 0.5 * x * (1 + jax.lax.erf(x * 2**-0.5))


def _gelu_backward(x: Array, grad: Array) -> tuple[Array]:
    density = jnp.exp(-0.5 * x * x) * (2 * jnp.pi) ** -0.5
    return ((grad * (0.5 * (1 + jax.lax.erf(x * 2**-0.5)) + x * density)).astype(x.dtype),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)
