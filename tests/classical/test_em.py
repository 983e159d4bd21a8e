from dataclasses import replace

import numpy as np
import pytest

from mixtura.classical.data import Data
from mixtura.classical.em import Task, empty_experts, iterate, reseed, responsibilities, run, start, temperature_at
from mixtura.classical.experts.gaussian import LinearExpert
from mixtura.classical.gates.softmax import ConstantGate, SoftmaxGate


def two_lines(n_samples=200):
    rng = np.random.default_rng(0)
    X = rng.uniform(-1, 1, size=(n_samples, 1))
    y = np.where(X < 0, 1 + 2 * X, 1 - 3 * X) + 0.1 * rng.normal(size=X.shape)
    return Data(X=X, y=y, sample_weight=np.ones(n_samples))


def task(data, n_experts=2, **options):
    gate, experts = SoftmaxGate().bind(data, n_experts), LinearExpert().bind(data, n_experts)
    settings = {"tol": 1e-6, "max_iter": 100} | options
    return Task(gate=gate, experts=experts, sample_weight=data.sample_weight, n_experts=n_experts, **settings)


def halves(data, temperature=1.0):
    side = (data.X[:, 0] > 0.3).astype(int)
    return start(data, 0.8 * np.eye(2)[side] + 0.1, temperature=temperature)


def test_responsibilities_are_the_posterior_and_the_evidence():
    joint = np.random.default_rng(0).random((5, 3))
    share, log_density = responsibilities(np.log(joint))
    np.testing.assert_allclose(share, joint / joint.sum(axis=1, keepdims=True))
    np.testing.assert_allclose(log_density, np.log(joint.sum(axis=1)))


def test_responsibilities_survive_densities_that_underflow_and_rows_that_nobody_explains():
    share, log_density = responsibilities(np.array([[-1e6, -1e6 - 1.0], [-np.inf, -np.inf]]))
    np.testing.assert_allclose(share, [[0.7310586, 0.2689414], [0.5, 0.5]], rtol=1e-6)
    assert log_density[0] == pytest.approx(-1e6 + np.log1p(np.exp(-1.0)))
    assert log_density[1] == -np.inf


def test_heat_evens_responsibilities_out():
    joint = np.log(np.array([[0.9, 0.1]]))
    share, value = responsibilities(joint.copy(), temperature=2.0)
    np.testing.assert_allclose(share[0, 0] / share[0, 1], 3.0)
    np.testing.assert_allclose(value, 2 * np.log(np.sqrt(0.9) + np.sqrt(0.1)))


def test_em_finds_two_lines():
    data = two_lines()
    done = run(task(data), halves(data), iterations=100)
    assert done.converged
    slopes = np.sort(done.best.experts.coef[:, 0, 0])
    np.testing.assert_allclose(slopes, [-3.0, 2.0], atol=0.2)
    np.testing.assert_allclose(done.best.experts.covariance.ravel(), 0.01, rtol=0.3)
    assert done.best_objective == max(step.objective for step in done.steps)


def test_a_run_in_two_parts_is_the_run_in_one():
    data = two_lines()
    whole = run(task(data), halves(data), iterations=20)
    parts = run(task(data), run(task(data), halves(data), iterations=7), iterations=13)
    assert whole.steps == parts.steps


def test_annealing_ends_at_temperature_one():
    data = two_lines()
    done = run(task(data, temperature=4.0), halves(data, 4.0), iterations=100)
    heats = [step.temperature for step in done.steps]
    assert heats[0] == 4.0
    assert heats == sorted(heats, reverse=True)
    assert heats[-1] == 1.0
    assert done.best is not None
    assert temperature_at(1.0, 0) == 1.0


def test_an_expert_without_rows_is_reseeded_with_the_worst_explained():
    data = two_lines()
    mixed = replace(task(data), gate=ConstantGate().bind(data, 2))
    first = iterate(mixed, start(data, np.column_stack([np.ones(200), np.zeros(200)])))
    assert first.steps[0].reseeded == (1,)
    assert first.n_reseeds == 1
    assert first.weights[:, 1].sum() == 50
    done = run(mixed, first, iterations=100)
    assert done.best_objective > first.best_objective + 10
    assert empty_experts(mixed, done.weights) == ()


def test_reseeding_shares_the_worst_rows_out():
    weights = np.column_stack([np.ones(12), np.zeros((12, 2))])
    after = reseed(weights, -np.arange(12.0), np.ones(12), empty=(1, 2))
    assert np.array_equal(np.flatnonzero(after[:, 1]), [10, 11])
    assert np.array_equal(np.flatnonzero(after[:, 2]), [8, 9])
    np.testing.assert_allclose(after.sum(axis=1), 1.0)


def test_a_fixed_gate_and_frozen_experts_are_not_reseeded():
    data = two_lines()
    weights = np.column_stack([np.ones(200), np.zeros(200)])
    assert empty_experts(task(data), weights) == (1,)
    assert empty_experts(task(data, reseed=False), weights) == ()
    frozen = task(data)
    frozen.experts.frozen[:] = True
    assert empty_experts(frozen, weights) == ()


def test_weights_are_repetitions():
    data = two_lines(60)
    counts = np.random.default_rng(1).integers(1, 4, size=60)
    weighted = Data(X=data.X, y=data.y, sample_weight=counts.astype(float))
    repeated = Data(
        X=data.X.repeat(counts, axis=0), y=data.y.repeat(counts, axis=0), sample_weight=np.ones(counts.sum())
    )
    one, many = (run(task(d), halves(d), iterations=30) for d in (weighted, repeated))
    np.testing.assert_allclose(
        [step.objective for step in one.steps], [step.objective for step in many.steps], rtol=1e-9
    )


def test_constant_weights_are_the_mean_responsibilities():
    data = two_lines()
    gate = ConstantGate().bind(data, 2)
    plain = Task(
        gate=gate,
        experts=LinearExpert().bind(data, 2),
        sample_weight=data.sample_weight,
        n_experts=2,
        tol=0,
        max_iter=9,
    )
    done = iterate(plain, halves(data))
    np.testing.assert_allclose(np.exp(done.current.gate.log_weight), halves(data).weights.mean(axis=0))
