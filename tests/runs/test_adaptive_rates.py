"""The experiment on adaptive learning rates, against Optax and explicit loops."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

import pfcore
from pfcore import experiments, learning_rates
from pfcore.experiments import adaptive_rates, analysis, optimizers
from pfcore.experiments.signal import scale_by_signal
from pfcore.runs import execution
from pfcore.runs.problems import build

TINY = (
    "problem.data=breast_cancer",
    "problem.widths=4",
    "problem.num_train=64",
    "problem.num_test=30",
)
STEPS = 12


def configure(*changes: str):
    return experiments.configure(
        "adaptive-rates", *TINY, f"budget={STEPS}", "every=4", *changes, profile="quick"
    )


def run(*changes: str):
    return experiments.run("adaptive-rates", configure(*changes))


def problem():
    """The loss of the tiny problem, and its initial parameters."""
    built = build(configure().problem, seed=0)
    return built.loss(built.data), built.params, built


def written_out(tx, extras=lambda loss, value, gradient: {}):
    """Losses of training with Optax's own transformation, and the parameters at the end."""
    loss, params, _ = problem()
    tx = optax.with_extra_args_support(tx)

    @jax.jit
    def step(params, state):
        value, gradient = jax.value_and_grad(loss)(params)
        with jax.numpy_dtype_promotion("standard"):
            updates, state = tx.update(gradient, state, params, **extras(loss, value, gradient))
        return optax.apply_updates(params, updates), state, value

    state, found = tx.init(params), []
    with jax.numpy_dtype_promotion("standard"):
        for _ in range(STEPS):
            params, state, value = step(params, state)
            found.append(float(value))
    return np.array(found), params, state


def with_loss(loss, value, gradient):
    return {"loss_fn": loss}


WRITTEN_OUT = {
    "dal": (lambda: learning_rates.dal(), with_loss),
    "dal:power=0.5:max_learning_rate=0.3": (lambda: learning_rates.dal(0.5, 0.3), with_loss),
    "dal:refresh_every=3": (lambda: learning_rates.dal(refresh_every=3), with_loss),
    "dal:product=finite_difference": (
        lambda: learning_rates.dal(product="finite_difference"),
        with_loss,
    ),
    "dal:momentum=0.5": (
        lambda: optax.chain(learning_rates.scale_by_dal(), optax.trace(0.5), optax.scale(-1.0)),
        with_loss,
    ),
    "cdat:scale=1:decay=0.5": (lambda: learning_rates.cdat(1.0, 0.5), with_loss),
    "sharpness": (lambda: learning_rates.sharpness_rate(), with_loss),
    "sgd:learning_rate=0.3": (lambda: optax.sgd(0.3), lambda *_: {}),
    "sgd:learning_rate=0.3:momentum=0.9": (lambda: optax.sgd(0.3, momentum=0.9), lambda *_: {}),
    "adam:learning_rate=0.01": (lambda: optax.adam(0.01), lambda *_: {}),
    "polyak": (
        lambda: optax.polyak_sgd(max_learning_rate=5.0),
        lambda loss, value, gradient: {"value": value},
    ),
    "line-search": (
        lambda: optax.chain(
            optax.sgd(1.0), optax.scale_by_backtracking_linesearch(30, max_learning_rate=5.0)
        ),
        lambda loss, value, gradient: {"value": value, "grad": gradient, "value_fn": loss},
    ),
    "schedule-free:learning_rate=0.3": (
        lambda: contrib.schedule_free(optax.sgd(0.3), 0.3),
        lambda *_: {},
    ),
    "prodigy": (lambda: contrib.prodigy(), lambda *_: {}),
}


# One process runs all methods, once.
of_everything = pytest.mark.xdist_group("everything")


@pytest.fixture(scope="module")
def everything():
    return run(f"methods={','.join(WRITTEN_OUT)}")


def test_every_method_is_listed():
    assert {optimizers.read(text).name for text in WRITTEN_OUT} == set(optimizers.METHODS)


@of_everything
@pytest.mark.parametrize("text", WRITTEN_OUT)
def test_against_optax(everything, text):
    index = list(WRITTEN_OUT).index(text)
    tx, extras = WRITTEN_OUT[text]
    losses, params, state = written_out(tx(), extras)
    np.testing.assert_allclose(everything["loss_each_step"][index, 0], losses, rtol=2e-4)
    # At the end the parameters recommended by the method are evaluated.
    if text.startswith("schedule-free"):
        params = contrib.schedule_free_eval_params(state, params)
    loss, _, built = problem()
    np.testing.assert_allclose(everything["loss"][index, 0, -1], loss(params), rtol=2e-4)
    accuracy = built.accuracy(built.data)(params)
    np.testing.assert_allclose(everything["test_accuracy"][index, 0, -1], accuracy, atol=1e-6)
    rises = np.sum(np.diff(losses) > 0)
    assert abs(everything["num_rises"][index, 0, -1] - rises) <= (text == "prodigy")


def test_measurements_match_their_definitions():
    found = run("methods=sgd:learning_rate=0.3", "sharpness=true")
    loss, params, built = problem()
    path = pfcore.gradient_descent(loss, params, 0.3, STEPS)
    for i, step in enumerate(range(0, STEPS + 1, 4)):
        at = jax.tree.map(lambda x, k=step: x[k], path)
        assert found["step"][0, 0, i] == step
        np.testing.assert_allclose(found["loss"][0, 0, i], loss(at), rtol=1e-5)
        np.testing.assert_allclose(
            found["sharpness"][0, 0, i],
            np.max(pfcore.curvature.spectrum(loss, at)),
            rtol=1e-3,
        )
        data = built.data
        unseen = built.loss(
            data._replace(train_inputs=data.test_inputs, train_targets=data.test_targets)
        )
        np.testing.assert_allclose(found["test_loss"][0, 0, i], unseen(at), rtol=1e-5)
    np.testing.assert_allclose(found["rate_each_step"][0, 0], 0.3, rtol=1e-6)


@of_everything
def test_methods_count_their_gradients(everything):
    costs = dict(zip(WRITTEN_OUT, everything["cost"][:, 0, -1], strict=True))
    assert costs["sgd:learning_rate=0.3"] == costs["polyak"] == costs["prodigy"] == STEPS
    assert costs["dal"] == costs["cdat:scale=1:decay=0.5"] == 3 * STEPS
    assert costs["dal:product=finite_difference"] == 2 * STEPS
    assert costs["dal:refresh_every=3"] == STEPS + 2 * STEPS / 3
    assert STEPS * (1 + 1 / 3) - 1e-3 <= costs["line-search"] < 6 * STEPS
    assert costs["sharpness"] >= 5 * STEPS


def test_a_budget_in_gradients():
    found = run("methods=dal,sgd:learning_rate=0.3,line-search", "unit=gradients")
    spent = found["cost"][:, 0]
    assert np.all(spent[:2] == [0, 6, 9, 12]) or np.all(spent[0] >= [0, 4, 8, 12])
    assert np.all(spent[1] == [0, 4, 8, 12])
    assert np.all(found["step"][0, 0] * 3 == spent[0])
    assert 12 <= spent[2, -1] < 12 + 10
    each = found["loss_each_step"][:, 0]
    assert np.sum(np.isfinite(each), axis=-1).tolist() == found["step"][:, 0, -1].tolist()
    assert not np.any(found["diverged_at_step"] >= 0)


def test_batches_cover_the_samples_once_per_epoch_in_a_new_order():
    """At a tiny learning rate, the losses of an epoch average to that of all samples."""
    found = run(
        "methods=sgd:learning_rate=1e-9,sgd:learning_rate=2e-9", "batch_size=16", "seeds=0,1"
    )
    each = found["loss_each_step"]
    np.testing.assert_allclose(
        each.reshape(2, 2, 3, 4).mean(axis=-1), found["loss"][..., :-1], rtol=1e-5
    )
    assert np.all(np.ptp(each[0, 0].reshape(3, 4), axis=0) > 1e-4)  # another order in each epoch
    np.testing.assert_allclose(each[0], each[1], rtol=1e-5)  # the same for every method
    assert not np.allclose(each[0, 0] / each[0, 0, 0], each[0, 1] / each[0, 1, 0], rtol=1e-3)


def test_seeds_draw_different_weights():
    found = run("methods=sgd:learning_rate=0.3", "seeds=3,0")
    for place, seed in enumerate((3, 0)):
        built = build(configure().problem, seed=seed)
        loss = built.loss(built.data)
        np.testing.assert_allclose(found["loss"][0, place, 0], loss(built.params), rtol=1e-6)


def test_divergence_is_reported():
    found = run("methods=sgd:learning_rate=0.3,sgd:learning_rate=1e25")
    assert found["diverged_at_step"][0, 0] == -1 and found.info["diverged"]
    at = found["diverged_at_step"][1, 0]
    each = found["loss_each_step"][1, 0]
    assert 0 < at < STEPS and found.info["diverged_at_step"] == at
    assert np.all(np.isfinite(each[:at])) and not np.any(np.isfinite(each[at:]))


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    config = configure("methods=dal,prodigy", "each_step=false")
    plan = experiments.EXPERIMENTS["adaptive-rates"].plan(config)
    whole = experiments.run("adaptive-rates", config)
    state = plan.advance(plan.start(), 0)
    found = plan.outcome(plan.advance(state, 1))
    assert found.arrays.keys() == whole.arrays.keys()
    for name, array in found.arrays.items():
        np.testing.assert_array_equal(array, whole[name])
    kept = experiments.run("adaptive-rates", config, out=tmp_path / "kept")
    np.testing.assert_array_equal(kept["loss"], whole["loss"])


@pytest.mark.parametrize(
    "text, label",
    [
        ("dal", "DAL"),
        ("dal:power=0.5", "DAL-0.5"),
        ("dal:refresh_every=10", "DAL, refresh every 10"),
        ("sgd:learning_rate=0.20:momentum=0.9", "SGD, h = 0.2, momentum 0.9"),
        ("sharpness", "2/λ₀"),
    ],
)
def test_labels(text, label):
    assert optimizers.label(text) == label


@pytest.mark.parametrize(
    "change, message",
    [
        ("methods=", "methods must name at least one"),
        ("methods=sdg:learning_rate=0.1", "unknown method 'sdg:learning_rate=0.1'"),
        ("methods=sgd", "needs learning_rate: write sgd:learning_rate=VALUE"),
        ("methods=dal:powr=1", "'powr=1' is not an option of dal"),
        ("methods=dal:power=-1", "power must be at least 0 and finite, got -1.0"),
        ("methods=dal:power=high", "power must be of type float, got 'high'"),
        ("methods=prodigy:x=1", "one of none"),
        ("methods=dal:power=1:power=2", "has power twice"),
        (
            "methods=polyak:max_learning_rate=-1",
            "max_learning_rate must be positive",
        ),
        ("methods=line-search:max_learning_rate=0", "must be positive and finite, got 0"),
        ("methods=sgd:learning_rate=0.1:momentum=-3", "at least 0 and less than 1, got -3"),
        ("methods=dal:momentum=nan", "momentum must be at least 0 and less than 1, got nan"),
        ("methods=dal:cosine=-5", "cosine must be finite and not negative, got -5"),
        ("unit=seconds", "unit must be one of steps, gradients, got 'seconds'"),
        ("every=5", "budget must be a multiple of every = 5, got 12"),
        ("batch_size=65", "batch_size must be at most the 64 training samples, got 65"),
        ("sharpness=maybe", "sharpness must be true or false, got 'maybe'"),
    ],
)
def test_invalid_settings_are_rejected(change, message):
    with pytest.raises(ValueError, match=message):
        run(change)


def test_other_numbers_do_not_recompile():
    from pfcore.experiments import adaptive_rates

    before = adaptive_rates._train._cache_size()
    run("methods=sgd:learning_rate=0.11", "budget=16")
    once = adaptive_rates._train._cache_size()
    run("methods=sgd:learning_rate=0.12,sgd:learning_rate=0.13", "budget=16", "seeds=0,1")
    assert adaptive_rates._train._cache_size() == once == before + 1


def test_dal_uses_the_loss_of_the_batch():
    """The product is that of the mini-batch's loss, not of the full-batch loss."""
    found = run("methods=dal", "batch_size=16")
    built = build(configure().problem, seed=0)
    order = jax.random.permutation(jax.random.fold_in(jax.random.key(0), 0), 64)[:16]
    data = built.data
    batch = built.loss(
        data._replace(
            train_inputs=data.train_inputs[order], train_targets=data.train_targets[order]
        )
    )
    flat, unravel = jax.flatten_util.ravel_pytree(built.params)
    hessian = jax.jit(jax.hessian(lambda v: batch(unravel(v))))(flat)
    g = jax.grad(lambda v: batch(unravel(v)))(flat)
    rate = 2 * jnp.linalg.norm(g) / jnp.linalg.norm(hessian @ g)
    np.testing.assert_allclose(found["rate_each_step"][0, 0, 0], min(rate, 5.0), rtol=1e-4)


# ---- reading the records


def test_the_confidence_interval_has_its_stated_coverage():
    draws = np.random.default_rng(0).normal(3.0, 2.0, size=(4000, 5))
    mean, half_width = analysis.interval(draws)
    covered = np.mean(np.abs(mean - 3.0) <= half_width)
    assert abs(covered - 0.95) < 4 * np.sqrt(0.95 * 0.05 / 4000)
    assert np.isnan(analysis.interval([1.0]).half_width)


def test_the_best_of_those_that_did_not_diverge():
    sweep = [f"sgd:learning_rate={h}" for h in ("0.01", "0.3", "1e25")]
    record = run(f"methods={','.join(sweep)}", "seeds=0,1")
    assert analysis.diverged(record).tolist() == [[False] * 2, [False] * 2, [True] * 2]
    assert analysis.tuned(record, sweep) == "sgd:learning_rate=0.3"
    assert analysis.tuned(record, sweep[:1]) == sweep[0]
    with pytest.raises(ValueError, match="all of sgd:learning_rate=1e25 diverged"):
        analysis.tuned(record, sweep[2:])
    with pytest.raises(ValueError, match="not in this record: dal"):
        analysis.tuned(record, ["dal"])


def test_a_sweep_and_its_extension_are_merged():
    sweep = [f"sgd:learning_rate={h}" for h in ("0.1", "0.2", "0.3")]
    whole = run(f"methods={','.join(sweep)}")
    parts = [run(f"methods={','.join(part)}") for part in (sweep[:2], sweep[2:])]
    found = analysis.joined(*parts)
    assert found.info["config"] == whole.info["config"]
    for name, array in whole.arrays.items():
        np.testing.assert_array_equal(found[name], array)
    other = run(f"methods={sweep[2]}", "budget=16")
    with pytest.raises(ValueError, match="differ in budget: 12 and 16"):
        analysis.joined(parts[0], other)


def test_simultaneous_runs_equal_separate_runs(monkeypatch):
    config = experiments.configure(
        "adaptive-rates",
        "problem.widths=8",
        "problem.num_train=64",
        "methods=dal:power=1,dal:power=0.5,sgd:learning_rate=0.1",
        "seeds=0,1",
        "batch_size=16",
        "budget=12",
        "unit=gradients",
        "every=6",
        profile="quick",
    )
    alone = experiments.run("adaptive-rates", config)
    monkeypatch.setattr(adaptive_rates, "_has_accelerator", lambda: True)
    together = experiments.run("adaptive-rates", config)
    for name, array in alone.arrays.items():
        np.testing.assert_allclose(together[name], array, rtol=1e-4, err_msg=name)


def test_a_run_is_completed_where_its_pieces_are_grouped_otherwise(monkeypatch, tmp_path):
    """Four of six runs one by one, as on a CPU; then as on a GPU, where they are four pieces."""
    config = configure(
        "methods=dal,polyak,sgd:learning_rate=0.1,prodigy,sgd:learning_rate=0.2,sgd:learning_rate=0.3"
    )
    plan = adaptive_rates.plan(config)
    advance, done = plan.advance, []

    def interrupted(state, piece):
        if piece == 4:
            raise KeyboardInterrupt
        done.append(piece)
        return advance(state, piece)

    with monkeypatch.context() as patched:
        patched.setattr(adaptive_rates, "plan", lambda config: plan._replace(advance=interrupted))
        with pytest.raises(execution.Interrupted):
            experiments.run("adaptive-rates", config, out=tmp_path / "run")
    assert done == [0, 1, 2, 3]
    monkeypatch.setattr(adaptive_rates, "_has_accelerator", lambda: True)
    record = experiments.run("adaptive-rates", config, out=tmp_path / "run", resume=True)
    assert record.info["diverged"] is False and np.all(np.isfinite(record["loss"]))


def test_the_signal_is_the_fraction_that_is_not_noise():
    tx, mean = scale_by_signal(decay=0.9), jnp.array([3.0, 4.0])
    noise = jax.random.normal(jax.random.key(0), (4000, 2)) * 5

    def final(gradients):
        def step(state, gradient):
            return tx.update(gradient, state)[1], state.signal

        return np.asarray(jax.lax.scan(step, tx.init(mean), gradients)[1])

    np.testing.assert_allclose(final(jnp.tile(mean, (50, 1))), 1, rtol=1e-5)
    signs = jnp.where(jnp.arange(50) % 2, 1.0, -1.0)[:, None]
    assert final(signs * mean)[-1] == 0
    # Squared norms of 25, and of 50 in the mean: a third, which clipping at 0 raises a little.
    assert 0.3 < final(mean + noise)[100:].mean() < 0.4
