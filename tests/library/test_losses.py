import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import pfcore
from pfcore.losses import accuracy, full_batch
from pfcore.networks import MLP, ConvNet
from tests.conftest import flatten

pytestmark = pytest.mark.usefixtures("x64")

N, FEATURES = 11, 3
KINDS = ("mse", "cross_entropy")


def network(outputs, activation="tanh"):
    return MLP(
        (FEATURES, 4, outputs), activation=activation, param_dtype=jnp.float64, rngs=nnx.Rngs(0)
    )


@functools.cache
def data(outputs):
    """Inputs, integer classes, and the same classes as columns of floats."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(N, FEATURES))
    classes = rng.integers(0, max(outputs, 2), N)
    columns = classes[:, None].astype(float) if outputs == 1 else np.eye(outputs)[classes]
    return inputs, classes, columns


def moved(params, size=0.1, seed=1):
    """Complex parameters near `params`."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: jnp.asarray(np.asarray(x) + size * 1j * rng.normal(size=x.shape)), params
    )


def direction_like(params, seed=2):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), params)


@pytest.mark.parametrize("outputs", [1, 4])
@pytest.mark.parametrize("encoding", ["integers", "columns"])
def test_mse_against_numpy_and_optax(outputs, encoding):
    inputs, classes, columns = data(outputs)
    model = network(outputs)
    targets = classes if encoding == "integers" else columns
    loss, params = full_batch(model, inputs, targets, kind="mse")
    predicted = model(jnp.asarray(inputs))
    by_hand = 0.5 * np.mean(np.sum((np.asarray(predicted) - columns) ** 2, axis=1))
    assert float(loss(params)) == pytest.approx(by_hand, rel=1e-13)
    library = jnp.mean(jnp.sum(optax.l2_loss(predicted, jnp.asarray(columns)), axis=1))
    assert float(loss(params)) == pytest.approx(float(library), rel=1e-13)


@pytest.mark.parametrize("encoding", ["integers", "columns"])
def test_cross_entropy_against_numpy_and_optax(encoding):
    inputs, classes, columns = data(4)
    model = network(4)
    targets = classes if encoding == "integers" else columns
    loss, params = full_batch(model, inputs, targets, kind="cross_entropy")
    logits = model(jnp.asarray(inputs))
    exponentials = np.exp(np.asarray(logits))
    chosen = exponentials[np.arange(N), classes] / exponentials.sum(axis=1)
    assert float(loss(params)) == pytest.approx(-np.mean(np.log(chosen)), rel=1e-13)
    library = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(classes))
    assert float(loss(params)) == pytest.approx(float(jnp.mean(library)), rel=1e-13)


@pytest.mark.parametrize("encoding", ["integers", "columns", "vector", "booleans"])
def test_logistic_loss_against_optax(encoding):
    inputs, classes, columns = data(1)
    model = network(1)
    targets = {
        "integers": classes,
        "columns": columns,
        "vector": columns[:, 0],
        "booleans": classes.astype(bool),
    }[encoding]
    loss, params = full_batch(model, inputs, targets, kind="cross_entropy")
    library = optax.sigmoid_binary_cross_entropy(model(jnp.asarray(inputs)), jnp.asarray(columns))
    assert float(loss(params)) == pytest.approx(float(jnp.mean(library)), rel=1e-13)


def test_cross_entropy_with_probabilities_against_optax():
    inputs, _, _ = data(4)
    targets = np.random.default_rng(3).dirichlet(np.ones(4), N)
    model = network(4)
    loss, params = full_batch(model, inputs, targets, kind="cross_entropy")
    library = optax.softmax_cross_entropy(model(jnp.asarray(inputs)), jnp.asarray(targets))
    assert float(loss(params)) == pytest.approx(float(jnp.mean(library)), rel=1e-13)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("outputs", [1, 4])
def test_real_and_complex_parameters_agree_on_the_axis(kind, outputs):
    inputs, classes, _ = data(outputs)
    loss, params = full_batch(network(outputs), inputs, classes, kind=kind)
    continued = loss(moved(params, size=0.0))
    assert continued.dtype == jnp.complex128
    np.testing.assert_allclose(continued, loss(params), rtol=1e-13)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("outputs", [1, 4])
def test_cauchy_riemann(kind, outputs):
    """The derivative along i v is i times the derivative along v: the loss is analytic."""
    inputs, classes, _ = data(outputs)
    loss, params = full_batch(network(outputs), inputs, classes, kind=kind)
    point = moved(params)
    v = moved(direction_like(params), size=1.0, seed=3)
    along = jax.jvp(loss, (point,), (v,))[1]
    across = jax.jvp(loss, (point,), (jax.tree.map(lambda x: 1j * x, v),))[1]
    assert abs(along.real) > 1e-3 and abs(along.imag) > 1e-3
    np.testing.assert_allclose(across, 1j * along, rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("outputs", [1, 4])
def test_gradient_against_finite_differences(kind, outputs):
    inputs, classes, _ = data(outputs)
    loss, params = full_batch(network(outputs), inputs, classes, kind=kind)
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    step = 1e-5
    differences = [
        float(loss(unravel(flat + step * e)) - loss(unravel(flat - step * e))) / (2 * step)
        for e in jnp.eye(flat.size)
    ]
    np.testing.assert_allclose(flatten(jax.grad(loss)(params)), differences, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("microbatch", [None, 4])
def test_buffers_may_be_reused(microbatch):
    """As data loaders do. JAX shares the memory of NumPy arrays that are aligned to 64 bytes."""

    def aligned(values):
        room = np.empty(values.nbytes + 64, np.uint8)
        start = -room.ctypes.data % 64
        found = room[start : start + values.nbytes].view(values.dtype).reshape(values.shape)
        found[:] = values
        return found

    inputs = aligned(np.ones((N, FEATURES)))
    targets = aligned(np.zeros(N, np.int32))
    weights = aligned(np.ones(N))
    loss, params = full_batch(
        network(3),
        inputs,
        targets,
        kind="cross_entropy",
        weights=weights,
        microbatch=microbatch,
    )
    before = float(loss(params))
    share, _ = accuracy(network(3), inputs, targets, weights=weights)
    right = float(share(params))
    inputs[:], targets[:], weights[:] = -3, 1, 9
    assert float(loss(params)) == before and float(share(params)) == right


@pytest.mark.parametrize("microbatch", [1, 4, N, N + 5])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("state", ["real", "complex"])
def test_microbatches_add_up_to_the_full_batch(microbatch, kind, state):
    inputs, classes, _ = data(4)
    whole, params = full_batch(network(4), inputs, classes, kind=kind)
    parts, same = full_batch(network(4), inputs, classes, kind=kind, microbatch=microbatch)
    np.testing.assert_array_equal(flatten(same), flatten(params))
    point = moved(params) if state == "complex" else params
    v = direction_like(point)

    def everything(loss):
        grad = jax.grad(loss, holomorphic=state == "complex")
        g, hv = jax.jvp(grad, (point,), (v,))
        return np.concatenate([[loss(point)], flatten(g), flatten(hv)])

    np.testing.assert_allclose(everything(parts), everything(whole), rtol=1e-11, atol=1e-14)


def conv_net(norm="none"):
    return ConvNet((8, 8, 1), (4, 8), 3, norm=norm, param_dtype=jnp.float64, rngs=nnx.Rngs(0))


def images(num_samples):
    rng = np.random.default_rng(0)
    return rng.normal(size=(num_samples, 8, 8, 1)), rng.integers(0, 3, num_samples)


@functools.cache
def compiled(num_samples, microbatch, derivative):
    """The compiled gradient or Hessian product, and its arguments."""
    loss, params = full_batch(
        conv_net(), *images(num_samples), kind="cross_entropy", microbatch=microbatch
    )
    function = {
        "gradient": lambda p, v: jax.grad(loss)(p),
        "product": lambda p, v: pfcore.curvature.hvp(loss, p, v),
    }[derivative]
    arguments = params, jax.tree.map(jnp.ones_like, params)
    return jax.jit(function).lower(*arguments).compile(), arguments


@pytest.mark.parametrize("derivative", ["gradient", "product"])
def test_microbatches_bound_the_memory_of_a_convolutional_network(derivative):
    def memory(*of):
        return compiled(*of, derivative)[0].memory_analysis().temp_size_in_bytes

    four, sixteen, whole = memory(64, 16), memory(256, 16), memory(256, None)
    assert sixteen < 1.2 * four and sixteen < whole / 3


@pytest.mark.parametrize("derivative", ["gradient", "product"])
def test_microbatches_give_the_same_numbers_for_a_convolutional_network(derivative):
    (split, arguments), (whole, _) = (compiled(256, m, derivative) for m in (16, None))
    expected = flatten(whole(*arguments))
    difference = np.linalg.norm(flatten(split(*arguments)) - expected)
    assert difference < 1e-12 * np.linalg.norm(expected)


@pytest.mark.parametrize("microbatch", [None, 4])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("outputs, encoding", [(1, 1), (1, 2), (4, 1), (4, 2)])
def test_data_may_be_arguments_of_a_compiled_function(outputs, encoding, kind, microbatch):
    """In either encoding: the same as with concrete data."""
    inputs, targets = data(outputs)[0], data(outputs)[encoding]
    model = network(outputs)

    @jax.jit
    def value_and_gradient(params, inputs, targets):
        loss, _ = full_batch(model, inputs, targets, kind=kind, microbatch=microbatch)
        return loss(params), jax.grad(loss)(params)

    loss, params = full_batch(model, inputs, targets, kind=kind)
    value, gradient = value_and_gradient(params, jnp.asarray(inputs), jnp.asarray(targets))
    assert float(value) == pytest.approx(float(loss(params)), rel=1e-13)
    expected = flatten(jax.grad(loss)(params))
    np.testing.assert_allclose(flatten(gradient), expected, rtol=1e-11, atol=1e-14)
    closed, _ = full_batch(model, jnp.asarray(inputs), jnp.asarray(targets), kind=kind)
    assert float(closed(params)) == float(loss(params))


def test_shapes_are_checked_before_values_are_known():
    inputs, classes, _ = (jnp.asarray(x) for x in data(2))
    params = full_batch(network(2), inputs, classes, kind="mse")[1]

    def build(x, y):
        return full_batch(network(2), x, y, kind="cross_entropy")[0](params)

    for targets, message in (
        (classes[1:], f"{N} inputs but {N - 1} targets"),
        (classes[:, None], "class labels"),
        (inputs, r"shape \(11, 3\).*2 column"),
    ):
        with pytest.raises(ValueError, match=message):
            jax.jit(build)(inputs, targets)
    # Values are not checked under tracing.
    assert jnp.isfinite(jax.jit(build)(inputs, classes + 1))
    wrong = classes + 1
    for wrap in (lambda f: f, jax.jit):  # closed-over values are concrete
        with pytest.raises(ValueError, match="from 1 to 2"):
            wrap(lambda: build(inputs, wrong))()
    with pytest.raises(ValueError, match="probabilities"):
        build(inputs, 2.0 * jax.nn.one_hot(classes, 2))


@pytest.mark.parametrize("norm", [None, "batch"])
def test_microbatches_of_batch_statistics_are_rejected(norm):
    if norm is None:
        model = nnx.BatchNorm(64, use_running_average=False, rngs=nnx.Rngs(0))
        inputs = targets = np.random.default_rng(0).normal(size=(6, 64)).astype(np.float32)
    else:
        model, (inputs, targets) = conv_net(norm), images(6)
    for function in (functools.partial(full_batch, kind="mse"), accuracy):
        with pytest.raises(ValueError, match=r"microbatch=4.*statistics of each microbatch"):
            function(model, inputs, targets, microbatch=4)
        function(model, inputs, targets, microbatch=6)  # all at once


class SaysWhen(nnx.Module):
    """Batch normalisation whose mode is set in the call, not in the constructor."""

    def __init__(self, running, told):
        self.norm = nnx.BatchNorm(FEATURES, use_running_average=told, rngs=nnx.Rngs(0))
        self.norm.mean[...] = jnp.arange(3, dtype=jnp.float32)
        self.running = running

    def __call__(self, x):
        return self.norm(x, use_running_average=self.running)


@pytest.mark.parametrize("told", [False, True, None])
def test_batch_statistics_are_detected_by_the_call(told):
    inputs = data(1)[0].astype(np.float32)
    targets = np.zeros_like(inputs)
    with pytest.raises(ValueError, match="statistics of each microbatch"):
        full_batch(SaysWhen(False, told), inputs, targets, kind="mse", microbatch=4)
    loss, params = full_batch(SaysWhen(True, told), inputs, targets, kind="mse", microbatch=4)
    expected = 0.5 * np.mean(np.sum((inputs - np.arange(3)) ** 2, axis=1)) / (1 + 1e-5)
    assert float(loss(params)) == pytest.approx(expected, rel=1e-5)


def test_other_normalisations_may_be_split():
    model, (inputs, targets) = conv_net("group"), images(6)
    whole, params = full_batch(model, inputs, targets, kind="mse")
    parts, _ = full_batch(model, inputs, targets, kind="mse", microbatch=4)
    assert float(parts(params)) == pytest.approx(float(whole(params)), rel=1e-13)


@pytest.mark.parametrize("microbatch", [None, 1, 4, N + 5])
@pytest.mark.parametrize("outputs", [1, 4])
def test_accuracy_against_numpy(outputs, microbatch):
    inputs, classes, columns = data(outputs)
    model = network(outputs)
    predicted = np.asarray(model(jnp.asarray(inputs)))
    found = predicted[:, 0] > 0 if outputs == 1 else predicted.argmax(axis=1)
    right = np.sum(found == classes)
    assert 0 < right < N
    for targets in (classes, columns, jnp.asarray(classes)):
        share, params = accuracy(model, inputs, targets, microbatch=microbatch)
        assert share(params).dtype == jnp.float64 and float(share(params)) == right / N
    complex_params = jax.tree.map(lambda x: x + 1e-3j, moved(params, size=0.0))
    assert share(complex_params).dtype == jnp.float64
    assert float(share(complex_params)) == right / N

    @jax.jit
    def compiled(params, inputs, targets):
        return accuracy(model, inputs, targets, microbatch=microbatch)[0](params)

    found = compiled(params, jnp.asarray(inputs), jnp.asarray(classes))
    assert float(found) == pytest.approx(right / N, rel=1e-15)


def test_accuracy_of_one_output_has_a_threshold():
    model = MLP((1, 1), param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    inputs, targets = [[-0.2], [0.2], [0.7], [0.9]], [0, 0, 1, 1]
    for threshold, expected in ((0.0, 0.75), (0.5, 1.0), (0.8, 0.75)):
        share, params = accuracy(model, inputs, targets, threshold=threshold)
        params["layers"][0]["kernel"] = jnp.ones((1, 1))
        assert float(share(params)) == expected


@pytest.mark.parametrize("outputs", [1, 4])
def test_nan_outputs_count_as_wrong(outputs):
    """Even if every class is the one that comparisons with NaN would give."""
    share, params = accuracy(network(outputs), data(outputs)[0], np.zeros(N, int))
    assert float(share(jax.tree.map(lambda x: jnp.nan * x, params))) == 0


def test_accuracy_rejects_the_same_arguments_as_the_loss():
    inputs, classes, _ = data(2)
    with pytest.raises(ValueError, match=f"{N} inputs but {N - 1} targets"):
        accuracy(network(2), inputs, classes[1:])
    with pytest.raises(ValueError, match="from 5 to 6"):
        accuracy(network(2), inputs, classes + 5)
    with pytest.raises(ValueError, match="microbatch must be at least 1, got 0"):
        accuracy(network(2), inputs, classes, microbatch=0)


@pytest.mark.parametrize("microbatch", [None, 2])
def test_large_logits(microbatch):
    """A logit that is wrong by Δ costs Δ, with slope 1; one that is right by Δ costs nothing."""
    model = MLP((1, 2), param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    inputs = np.array([[1e3], [-1e3], [1e3]])
    loss, params = full_batch(model, inputs, [0, 0, 1], kind="cross_entropy", microbatch=microbatch)
    params = jax.tree.map(jnp.zeros_like, params)
    params["layers"][0]["kernel"] = jnp.array([[1.0, -1.0]])
    assert float(loss(params)) == pytest.approx(4000 / 3, rel=1e-13)
    gradient = jax.grad(loss)(params)["layers"][0]
    # Sample 2 is wrong with x = −1000, sample 3 with x = 1000; both by 2,000.
    np.testing.assert_allclose(gradient["kernel"], [[2000 / 3, -2000 / 3]], rtol=1e-13)
    np.testing.assert_allclose(gradient["bias"], [0, 0], atol=1e-13)


@pytest.mark.parametrize("sign", [1, -1])
def test_large_logits_of_the_logistic_loss(sign):
    model = MLP((1, 1), param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    loss, params = full_batch(model, [[1e3]], [1], kind="cross_entropy")
    params["layers"][0]["kernel"] = jnp.array([[float(sign)]])
    assert float(loss(params)) == pytest.approx(0 if sign > 0 else 1000, abs=1e-12)
    slope = jax.grad(loss)(params)["layers"][0]["kernel"]
    np.testing.assert_allclose(slope, [[0.0 if sign > 0 else -1000.0]], atol=1e-12)


def test_losses_are_in_the_dtype_of_the_parameters():
    model = MLP((FEATURES, 2), rngs=nnx.Rngs(0))
    for microbatch in (None, 4):
        for kind in KINDS:
            loss, params = full_batch(model, *data(2)[:2], kind=kind, microbatch=microbatch)
            assert loss(params).dtype == jnp.float32


class Shifted(nnx.Module):
    """A bias that is trained, over a shift that is not a parameter."""

    def __init__(self):
        self.bias = nnx.Param(jnp.zeros(FEATURES))
        self.shift = nnx.BatchStat(jnp.array([1.0, 2.0, 3.0]))

    def __call__(self, x):
        return x - self.shift + self.bias


def test_non_parameters_are_frozen():
    model = Shifted()
    inputs, _, _ = data(1)
    loss, params = full_batch(model, inputs, np.zeros((N, FEATURES)), kind="mse")
    assert list(params) == ["bias"]
    model.shift[...] = jnp.zeros(FEATURES)
    expected = 0.5 * np.mean(np.sum((inputs - [1.0, 2.0, 3.0]) ** 2, axis=1))
    assert float(loss(params)) == pytest.approx(expected, rel=1e-13)


def test_state_updated_by_a_call_is_copied():
    """Statistics of the batch: the same loss at every call, compiled or not."""
    model = nnx.BatchNorm(FEATURES, use_running_average=False, rngs=nnx.Rngs(0))
    inputs = data(1)[0].astype(np.float32)
    loss, params = full_batch(model, inputs, np.zeros((N, FEATURES), np.float32), kind="mse")
    assert sorted(params) == ["bias", "scale"]
    expected = 0.5 * FEATURES  # ½ Σ_j of variances 1
    for value in (loss(params), jax.jit(loss)(params), loss(params)):
        assert float(value) == pytest.approx(expected, rel=1e-4)
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(jax.grad(loss)(params)))
    np.testing.assert_array_equal(model.mean[...], 0)


@pytest.mark.parametrize(
    "outputs, targets, kind, message",
    [
        (2, [0] * N, "hinge", "'hinge'.*mse, cross_entropy"),
        (2, [0] * (N - 1) + [2], "mse", r"from 0 to 2.*2 output\(s\)"),
        (1, [0] * (N - 1) + [2], "cross_entropy", r"from 0 to 2.*1 output\(s\)"),
        (2, [0] * (N - 1) + [-1], "mse", "from -1 to 0"),
        (2, [[0]] * N, "mse", rf"class labels \[n\], got shape \({N}, 1\)"),
        (2, [[0.0]] * N, "mse", rf"shape \({N}, 1\).*2 column"),
        (2, [0.0] * N, "mse", rf"shape \({N},\).*2 column"),
        (2, [0] * (N + 1), "mse", f"{N} inputs but {N + 1} targets"),
        (2, [[True, True]] * N, "cross_entropy", "probabilities"),
        (2, [[0.0, 0.5]] * N, "cross_entropy", "probabilities"),
        (2, [[2.0, -1.0]] * N, "cross_entropy", "probabilities"),
        (2, [[float("nan"), 1.0]] * N, "cross_entropy", "probabilities"),
        (1, [[1.5]] * N, "cross_entropy", "probabilities"),
        (1, [[-0.5]] * N, "cross_entropy", "probabilities"),
    ],
)
def test_mismatched_targets_are_rejected(outputs, targets, kind, message):
    with pytest.raises(ValueError, match=message):
        full_batch(network(outputs), data(2)[0], targets, kind=kind)


def test_other_invalid_arguments_are_rejected():
    inputs, classes, _ = data(2)
    with pytest.raises(ValueError, match="microbatch must be at least 1, got 0"):
        full_batch(network(2), inputs, classes, kind="mse", microbatch=0)
    with pytest.raises(TypeError, match=r"2\.5"):
        full_batch(network(2), inputs, classes, kind="mse", microbatch=2.5)
    with pytest.raises(ValueError, match=r"at least one sample, got shape \(0, 3\)"):
        full_batch(network(2), inputs[:0], classes[:0], kind="mse")


def test_non_finite_data_is_detected_before_training():
    inputs, classes, _ = data(2)
    loss, params = full_batch(network(2), np.full_like(inputs, np.nan), classes, kind="mse")
    with pytest.raises(ValueError, match="nan"):
        pfcore.gradient_descent(loss, params, 0.1, 1)


class Recurrent(nnx.Module):
    def __init__(self, cell):
        rngs = nnx.Rngs(0)
        self.cells = nnx.RNN(cell(3, 4, rngs=rngs))
        self.last = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        return self.last(self.cells(x)[:, -1])


class BothWays(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        cells = [nnx.RNN(nnx.GRUCell(3, 4, rngs=rngs)) for _ in range(2)]
        self.cells, self.last = nnx.Bidirectional(*cells), nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x):
        return self.last(self.cells(x).mean(1))


class Attention(nnx.Module):
    def __init__(self, **options):
        rngs = nnx.Rngs(0)
        self.heads = nnx.MultiHeadAttention(2, 3, 4, decode=False, rngs=rngs, **options)
        self.last = nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x):
        return self.last(self.heads(x).mean(1))


def wrapped(wrapper, **options):
    rngs = nnx.Rngs(0)
    layer = wrapper(nnx.Linear(3, 4, rngs=rngs), rngs=rngs, **options)
    return nnx.Sequential(layer, jnp.tanh, nnx.Linear(4, 2, rngs=rngs))


def single_ones(key, shape):
    return jnp.ones(shape, jnp.float32)


def followed(layer):
    """Between two linear layers of four features."""
    rngs = nnx.Rngs(0)
    return nnx.Sequential(nnx.Linear(3, 4, rngs=rngs), layer, nnx.Linear(4, 2, rngs=rngs))


ROWS, SEQUENCES = (10, 3), (10, 6, 3)
# The shape of the inputs, and a function that makes the model.
MODULES = {
    "LSTM": (SEQUENCES, lambda: Recurrent(nnx.LSTMCell)),
    "OptimizedLSTM": (SEQUENCES, lambda: Recurrent(nnx.OptimizedLSTMCell)),
    "GRU": (SEQUENCES, lambda: Recurrent(nnx.GRUCell)),
    "SimpleCell": (SEQUENCES, lambda: Recurrent(nnx.SimpleCell)),
    "Bidirectional": (SEQUENCES, BothWays),
    "MultiHeadAttention": (SEQUENCES, Attention),
    "WeightNorm": (ROWS, lambda: wrapped(nnx.WeightNorm, scale_init=single_ones)),
    "SpectralNorm": (ROWS, lambda: wrapped(nnx.SpectralNorm)),
    "BatchNorm": (ROWS, lambda: followed(nnx.BatchNorm(4, rngs=nnx.Rngs(1)))),
    "BatchNorm, evaluated": (
        ROWS,
        lambda: followed(nnx.BatchNorm(4, use_running_average=True, rngs=nnx.Rngs(1))),
    ),
    "LayerNorm": (ROWS, lambda: followed(nnx.LayerNorm(4, rngs=nnx.Rngs(1)))),
    "RMSNorm": (ROWS, lambda: followed(nnx.RMSNorm(4, rngs=nnx.Rngs(1)))),
    "Dropout": (ROWS, lambda: followed(nnx.Dropout(0.5, rngs=nnx.Rngs(1)))),
    "LoRA": (ROWS, lambda: nnx.LoRA(3, 2, 2, rngs=nnx.Rngs(1))),
}


def derivatives(loss, params):
    """Value, gradient, and the Hessian's product with ones."""

    @jax.jit
    def everything(params):
        ones = jax.tree.map(jnp.ones_like, params)
        return loss(params), jax.jvp(jax.grad(loss), (params,), (ones,))

    return flatten(everything(params)).astype(float)


@pytest.mark.parametrize("name", MODULES)
def test_modules_of_flax_against_a_loss_by_hand(name):
    shape, make = MODULES[name]
    rng = np.random.default_rng(0)
    inputs = jnp.asarray(rng.normal(size=shape), jnp.float32)
    classes = jnp.asarray(rng.integers(0, 2, shape[0]))
    model = make()
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    params, rest = nnx.to_pure_dict(params), nnx.to_pure_dict(rest)

    def by_hand(params):
        logits = nnx.merge(graph, params, rest)(inputs)
        return optax.softmax_cross_entropy_with_integer_labels(logits, classes).mean()

    expected = derivatives(by_hand, params)
    splits = name not in ("BatchNorm", "Dropout")
    for microbatch in (None, 4) if splits else (None,):
        loss, same = full_batch(model, inputs, classes, kind="cross_entropy", microbatch=microbatch)
        assert jax.tree.structure(same) == jax.tree.structure(params)
        found = derivatives(loss, same)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
        assert np.count_nonzero(found) > 0.3 * found.size


class Tagger(nnx.Module):
    """Logits at each position of sequences of tokens."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.embed = nnx.Embed(10, 4, rngs=rngs)
        self.cells = nnx.RNN(nnx.GRUCell(4, 4, rngs=rngs))
        self.last = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, tokens):
        return self.last(self.cells(self.embed(tokens)))


TOKENS = np.random.default_rng(0).integers(0, 10, (7, 5))
TAGS = np.random.default_rng(1).integers(0, 3, (7, 5))
KEPT = np.arange(5) < np.array([5, 3, 1, 4, 5, 2, 5])[:, None]


@pytest.mark.parametrize("microbatch", [None, 3])
@pytest.mark.parametrize("kept", [None, KEPT, KEPT.astype(int)], ids=["all", "bools", "ones"])
def test_a_class_for_each_token(kept, microbatch):
    """The mean over unmasked positions, whatever the others hold."""
    model, counts = Tagger(), np.ones_like(KEPT) if kept is None else KEPT
    targets = np.where(counts, TAGS, -100)
    loss, params = full_batch(
        model, TOKENS, targets, kind="cross_entropy", microbatch=microbatch, mask=kept
    )
    logits = np.asarray(model(jnp.asarray(TOKENS)), float)
    chosen = np.take_along_axis(logits, TAGS[..., None], axis=2)[..., 0]
    each = np.log(np.exp(logits).sum(axis=2)) - chosen
    assert float(loss(params)) == pytest.approx(each[counts].mean(), rel=1e-5)
    share, _ = accuracy(model, TOKENS, targets, microbatch=microbatch, mask=kept)
    right = logits.argmax(axis=2) == TAGS
    assert float(share(params)) == pytest.approx(right[counts].mean(), rel=1e-6)


def test_curvature_of_a_model_of_tokens_against_the_dense_hessian():
    model = Tagger()
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    params, rest = nnx.to_pure_dict(params), nnx.to_pure_dict(rest)

    def by_hand(params):
        logits = nnx.merge(graph, params, rest)(jnp.asarray(TOKENS))
        return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(TAGS)).mean()

    flat, unravel = jax.flatten_util.ravel_pytree(params)
    expected = jax.jit(jax.hessian(lambda x: by_hand(unravel(x))))(flat)
    loss, params = full_batch(model, TOKENS, TAGS, kind="cross_entropy", microbatch=3)
    found = jax.jit(jax.hessian(lambda x: loss(unravel(x))))(flat)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    top = pfcore.curvature.top_eigenpairs(loss, params, 1, key=jax.random.key(0)).values[0]
    assert float(top) == pytest.approx(np.linalg.eigvalsh(expected)[-1], rel=1e-4)


def test_numbers_at_each_position():
    model = MLP((FEATURES, 4, 2), param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    inputs, targets = rng.normal(size=(4, 5, FEATURES)), rng.normal(size=(4, 5, 2))
    each = 0.5 * np.sum((np.asarray(model(jnp.asarray(inputs))) - targets) ** 2, axis=2)
    loss, params = full_batch(model, inputs, targets, kind="mse")
    assert float(loss(params)) == pytest.approx(each.mean(), rel=1e-13)
    mask = rng.random((4, 5)) < 0.5
    padded = np.where(mask[..., None], targets, np.nan)
    loss, _ = full_batch(model, inputs, padded, kind="mse", mask=mask, microbatch=3)
    assert float(loss(params)) == pytest.approx(each[mask].mean(), rel=1e-13)
    assert np.all(np.isfinite(flatten(jax.grad(loss)(params))))


@pytest.mark.parametrize("microbatch", [None, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_counts_a_sample_as_often(kind, microbatch):
    inputs, classes, _ = data(4)
    weights = np.arange(N) % 3
    repeated = np.repeat(np.arange(N), weights)
    wanted, params = full_batch(network(4), inputs[repeated], classes[repeated], kind=kind)
    for scale in (1, 1e-30, 1e30):
        loss, _ = full_batch(
            network(4), inputs, classes, kind=kind, microbatch=microbatch, weights=scale * weights
        )
        assert float(loss(params)) == pytest.approx(float(wanted(params)), rel=1e-13)
        np.testing.assert_allclose(
            flatten(jax.grad(loss)(params)), flatten(jax.grad(wanted)(params)), rtol=1e-11
        )
    share, _ = accuracy(network(4), inputs, classes, weights=weights, microbatch=microbatch)
    expected, _ = accuracy(network(4), inputs[repeated], classes[repeated])
    assert float(share(params)) == pytest.approx(float(expected(params)), rel=1e-13)

    @jax.jit
    def compiled(params, inputs, classes, weights, mask):
        loss, _ = full_batch(
            network(4),
            inputs,
            classes,
            kind=kind,
            microbatch=microbatch,
            weights=weights,
            mask=mask,
        )
        return loss(params)

    # The mask excludes the same samples as the weights; both are traced.
    traced = (jnp.asarray(x) for x in (inputs, classes, np.maximum(weights, 1), weights > 0))
    assert float(compiled(params, *traced)) == pytest.approx(float(wanted(params)), rel=1e-13)


def test_weights_of_positions():
    loss, params = full_batch(Tagger(), TOKENS, TAGS, kind="cross_entropy", mask=KEPT)
    weighted, _ = full_batch(
        Tagger(), TOKENS, TAGS, kind="cross_entropy", weights=3.0 * KEPT, microbatch=2
    )
    assert float(weighted(params)) == pytest.approx(float(loss(params)), rel=1e-6)


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"weights": np.ones(N - 1)}, ValueError, rf"shape \({N - 1},\); pass \({N},\)"),
        ({"weights": -np.ones(N)}, ValueError, "non-negative.*-1"),
        ({"weights": np.full(N, np.nan)}, ValueError, "finite.*nan"),
        ({"weights": np.zeros(N)}, ValueError, "leave nothing"),
        ({"mask": np.zeros(N, bool)}, ValueError, "leave nothing"),
        ({"weights": np.ones(N, complex)}, TypeError, "complex128"),
        ({"mask": np.ones((N, 2), bool)}, ValueError, rf"mask has shape \({N}, 2\)"),
        ({"mask": np.ones(N)}, TypeError, "float64.*weights="),
        ({"rngs": "dropout"}, TypeError, r"'dropout'.*nnx\.Rngs\(0\)"),
    ],
)
def test_mismatched_options_are_rejected(options, error, message):
    with pytest.raises(error, match=message):
        full_batch(network(2), *data(2)[:2], kind="mse", **options)


@pytest.mark.parametrize(
    "targets, message",
    [
        (TAGS[:, 0], r"class labels \(7, 5, 3\)|class labels \(7, 5\), one for each position"),
        (TAGS[:, :4], r"shape \(7, 4\).*\(7, 5, 3\).*classes of shape \(7, 5\)"),
        (TAGS[:6], "7 inputs but 6 targets"),
        (np.ones((7, 5)), r"shape \(7, 5\).*\(7, 5, 3\)"),
        (TAGS - 100, r"from -100.*mask="),
    ],
)
def test_mismatched_sequence_targets_are_rejected(targets, message):
    with pytest.raises(ValueError, match=message):
        full_batch(Tagger(), TOKENS, targets, kind="cross_entropy")


class Returning(nnx.Module):
    """A model that applies a function to its outputs."""

    def __init__(self, what):
        self.layer, self.what = nnx.Linear(FEATURES, 1, rngs=nnx.Rngs(0)), what

    def __call__(self, x):
        return self.what(self.layer(x))


@pytest.mark.parametrize(
    "model, error, message",
    [
        (Returning(lambda y: (y, y)), TypeError, "one array.*returns the outputs alone"),
        (Returning(lambda y: y[:, 0]), ValueError, rf"shape \({N},\) for {N} inputs"),
        (Returning(lambda y: y.T), ValueError, rf"shape \(1, {N}\).*samples first"),
        (jnp.tanh, TypeError, "NNX module.*Linen, Haiku or Equinox"),
        (nnx.Dropout(0.5), ValueError, "Dropout, has no nnx.Param"),
        (nnx.List([nnx.Param(jnp.ones(2))]), TypeError, "cannot be called"),
    ],
)
def test_invalid_models_are_rejected(model, error, message):
    inputs = data(1)[0].astype(np.float32)
    with pytest.raises(error, match=message):
        full_batch(model, inputs, np.zeros(N), kind="mse")


def dropping(rate=0.5):
    return nnx.Sequential(
        nnx.Linear(FEATURES, 8, rngs=nnx.Rngs(0)),
        nnx.Dropout(rate, rngs=nnx.Rngs(1)),
        nnx.Linear(8, 4, rngs=nnx.Rngs(2)),
        nnx.Dropout(rate, rngs=nnx.Rngs(1)),
    )


class RandomStart(nnx.Module):
    """A recurrence with a random initial state."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.cell, self.rngs = nnx.SimpleCell(3, 4, rngs=rngs), rngs.carry.fork()
        self.cells = nnx.RNN(self.cell)

    def __call__(self, x):
        start = jax.random.normal(self.rngs(), (len(x), 4), jnp.float32)
        return self.cells(x, initial_carry=start)[:, -1]


class GivenRngs(nnx.Module):
    """Dropout that receives its random numbers in the call."""

    def __init__(self):
        self.layer, self.dropout = nnx.Linear(FEATURES, 4, rngs=nnx.Rngs(0)), nnx.Dropout(0.5)

    def __call__(self, x, *, rngs=None):
        return self.dropout(self.layer(x), rngs=rngs)


RANDOM = {
    "Dropout": (data(4)[0], dropping),
    "rngs at the call": (data(4)[0], GivenRngs),
    "attention": (
        np.random.default_rng(0).normal(size=(N, 6, 3)),
        lambda: Attention(dropout_rate=0.5, deterministic=False),
    ),
    "start of a recurrence": (
        np.random.default_rng(0).normal(size=(N, 6, 3)),
        RandomStart,
    ),
}


@pytest.mark.parametrize("name", RANDOM)
def test_random_numbers_of_a_sample_do_not_depend_on_the_microbatch(name):
    inputs, make = RANDOM[name]
    classes, rngs = np.arange(N) % 2, nnx.Rngs(7)

    def of(microbatch, model, rngs=rngs):
        loss, params = full_batch(
            model, inputs, classes, kind="cross_entropy", microbatch=microbatch, rngs=rngs
        )
        return derivatives(loss, params)

    model = make()
    whole = of(None, model)
    for microbatch in (1, 4):
        np.testing.assert_allclose(of(microbatch, model), whole, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(of(None, make(), 7), whole)
    if name != "rngs at the call":
        with pytest.raises(ValueError, match=r"microbatch=4.*rngs=nnx\.Rngs\(0\).*eval\(\)"):
            of(4, model, None)
    assert np.abs(of(4, model, nnx.Rngs(8)) - whole).max() > 1e-3  # other numbers
    rngs.dropout()
    assert np.abs(of(4, model, rngs) - whole).max() > 1e-3  # the next numbers of the stream
    assert int(rngs.default.count[...]) == 1  # `full_batch` draws none


def test_dropout_in_evaluation_mode_may_be_split():
    model = dropping()
    model.eval()
    whole, params = full_batch(model, *data(4)[:2], kind="cross_entropy")
    for options in ({}, {"rngs": nnx.Rngs(0)}):
        parts, _ = full_batch(model, *data(4)[:2], kind="cross_entropy", microbatch=4, **options)
        assert float(parts(params)) == pytest.approx(float(whole(params)), rel=1e-6)


def test_dropout_masks_are_independent_with_the_requested_rate():
    """A rate of 0.3 on ones: 0 in 30 % of 80,000 places, else 1/0.7, not alike between samples."""

    class Ones(nnx.Module):
        def __init__(self):
            self.scale = nnx.Param(jnp.ones(()))
            self.first = nnx.Dropout(0.3, rngs=nnx.Rngs(0))
            self.second = nnx.Dropout(0.3, rngs=nnx.Rngs(0))

        def __call__(self, x):
            return self.scale * jnp.concatenate([self.first(x), self.second(x)], axis=-1)

    n, width = 400, 100

    # With targets y and outputs s·m, dE/ds = mean_i Σ_j m_ij (s m_ij − y_ij), linear in y.
    def masks(microbatch):
        def slope(targets):
            loss, params = full_batch(
                Ones(),
                np.ones((n, width), np.float32),
                targets,
                kind="mse",
                microbatch=microbatch,
                rngs=nnx.Rngs(0),
            )
            return jax.grad(loss)(params)["scale"]

        return -n * np.asarray(jax.jit(jax.jacobian(slope))(jnp.zeros((n, 2 * width))))

    found = masks(None)
    np.testing.assert_allclose(masks(150), found, atol=1e-5)
    dropped = found < 0.5
    np.testing.assert_allclose(found[~dropped], 1 / 0.7, rtol=1e-5)
    assert abs(dropped.mean() - 0.3) < 4 * np.sqrt(0.3 * 0.7 / dropped.size)
    agree = 0.3**2 + 0.7**2
    first, second = dropped[:, :width], dropped[:, width:]
    for pair in ((first, second), (dropped[1:], dropped[:-1])):
        share = np.mean(pair[0] == pair[1])
        assert abs(share - agree) < 4 * np.sqrt(agree * (1 - agree) / pair[0].size)


@pytest.mark.parametrize("microbatch", [None, 4])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_16_bit_parameters_have_a_loss_in_single_precision(dtype, microbatch):
    """The same network outputs, averaged in NumPy in double precision."""
    model = MLP((FEATURES, 4), param_dtype=dtype, rngs=nnx.Rngs(0))
    inputs, _, columns = data(4)
    loss, params = full_batch(model, inputs, columns, kind="mse", microbatch=microbatch)
    outputs = np.asarray(model(jnp.asarray(inputs)), float)
    expected = 0.5 * np.mean(np.sum((outputs - columns) ** 2, axis=1))
    assert loss(params).dtype == jnp.float32
    assert float(loss(params)) == pytest.approx(expected, rel=1e-6)
    # With parameters cast to single precision, the network computes in it too.
    single = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    exact = inputs @ np.asarray(single["layers"][0]["kernel"], float)
    exact = exact + np.asarray(single["layers"][0]["bias"], float)
    expected = 0.5 * np.mean(np.sum((exact - columns) ** 2, axis=1))
    assert float(loss(single)) == pytest.approx(expected, rel=1e-6)


def test_accuracy_of_a_model_that_draws_random_numbers():
    model = nnx.Sequential(nnx.Linear(3, 8, rngs=nnx.Rngs(0)), nnx.Dropout(0.5, rngs=nnx.Rngs(1)))
    x, y = jax.random.normal(jax.random.key(0), (12, 3)), jnp.arange(12) % 8
    with pytest.raises(ValueError, match=r"pass rngs=nnx\.Rngs\(0\)"):
        accuracy(model, x, y, microbatch=4)
    shares = [accuracy(model, x, y, microbatch=size, rngs=nnx.Rngs(0)) for size in (None, 4)]
    assert len({float(share(params)) for share, params in shares}) == 1
