"""Can a loss be continued to complex parameters? Asked before any flow is followed there."""

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np

from pfcore import _programs
from pfcore._checks import Loss
from pfcore._trees import Params, ravel, to_complex

# Operations that are not analytic, or that drop or compare parts of complex numbers. A loss
# that uses one may still be analytic as a whole (JAX's softplus shifts by a maximum that cancels),
# so that meeting one here calls for the numerical test, and decides nothing alone.
_SUSPECTS = frozenset(
    {
        *("abs", "conj", "imag", "real", "sign"),
        *("ceil", "clamp", "floor", "max", "min", "reduce_max", "reduce_min", "round"),
        *("argmax", "argmin", "cummax", "cummin", "eq", "ge", "gt", "le", "lt", "ne", "sort"),
        *("io_callback", "pure_callback"),
    }
)


def _is_complex(abstract_value) -> bool:
    return jnp.issubdtype(jnp.result_type(abstract_value), jnp.complexfloating)


def _primitives_on_complex(jaxpr: jex.Jaxpr) -> set[str]:
    """Names of the operations that some complex value goes into, nested ones included."""
    return {
        equation.primitive.name
        for equation in _programs.equations(jaxpr)
        if any(_is_complex(v.aval) for v in equation.invars)
    }


def _some_values(params: Params) -> np.ndarray:
    """`params` as one vector; under tracing, where they have no values yet, random ones."""
    flat = ravel(params)[0]
    if isinstance(flat, jax.core.Tracer):
        return 0.5 * np.random.default_rng(1).normal(size=flat.shape).astype(flat.dtype)
    return np.asarray(flat)


def _looks_analytic(loss: Loss, params: Params) -> bool:
    r"""Whether `loss` has a Taylor series around points of the real axis, by measurement.

    On a circle $\theta + r e^{i\varphi} v$ an analytic function has no negative Fourier
    coefficients in $\varphi$; a kink or a conjugate inside the circle leaves some. Tried around
    `params` and around random real points, along random directions.
    """
    flat = _some_values(params)
    scale = np.sqrt(np.mean(flat**2)) or 1.0
    rng = np.random.default_rng(0)
    # Few parameters have few kinks to meet: look in more places.
    num_points = int(np.clip(4096 // flat.size, 4, 128))
    points = scale * rng.normal(size=(num_points, flat.size))
    points[0] = flat
    directions = scale * rng.normal(size=(num_points, flat.size))
    circle = np.exp(2j * np.pi * np.arange(32) / 32)
    shapes = jax.eval_shape(to_complex, params)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    unravel_complex = ravel(zeros)[1]
    dtype = np.result_type(flat.dtype, np.complex64)
    values_at = jax.jit(jax.vmap(jax.vmap(lambda x: loss(unravel_complex(x)))))
    for radius in (0.05, 0.2):
        around = points[:, None] + radius * circle[None, :, None] * directions[:, None]
        values = np.asarray(values_at(jnp.asarray(around, dtype)), np.complex128)
        coefficients = np.fft.fft(values, axis=1)
        variation = np.abs(coefficients[:, 1:]).max(axis=1)
        rounding = 1e3 * float(jnp.finfo(dtype).eps) * np.abs(coefficients[:, 0])
        # The last quarter: frequencies -1 to -8.
        negative = np.abs(coefficients[:, -8:]).max(axis=1)
        if not np.all(np.isfinite(values)) or np.any(negative > 1e-3 * variation + rounding):
            return False
    return True


def check_analytic(loss: Loss, params: Params) -> None:
    """Raise an error that names the way out if `loss` has no analytic continuation.

    Raises:
      ValueError: the loss uses operations that only make sense for real numbers, or is not
        analytic.
    """
    way_out = (
        "The complex principal flow needs an analytic loss: use analytic operations (tanh, sigmoid "
        "or softplus activations, not relu, abs or max), or follow the real part of the field at "
        "real parameters with principal_flow(..., state='real')."
    )
    abstract = jax.eval_shape(to_complex, params)
    try:
        jaxpr = jax.make_jaxpr(loss)(abstract)
    except Exception as error:  # it ran at real params before: whatever it says is of complex ones
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"loss cannot be evaluated at complex params ({first_line}). {way_out}"
        ) from error
    (output,) = jaxpr.out_avals
    suspects = sorted(_primitives_on_complex(jaxpr.jaxpr) & _SUSPECTS)
    if not _is_complex(output):
        raise ValueError(
            f"loss returns {output.dtype} at complex params: a real-only operation "
            f"({', '.join(suspects) or 'a cast'}) drops the imaginary part. {way_out}"
        )
    # Where the loss reads data that have no values yet, there is nothing to measure.
    if not suspects or _programs.is_traced(jaxpr.consts):
        return
    with jax.ensure_compile_time_eval():
        analytic = _looks_analytic(loss, params)
    if not analytic:
        raise ValueError(
            f"loss is not analytic: it uses {', '.join(suspects)} on complex values. {way_out}"
        )
