import numpy as np
import pytest

from mixtura.classical import MoEClassifier
from mixtura.errors import UserError


def xor(n_samples=600, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.uniform(-1, 1, size=(n_samples, 2))
    return X, np.where((X[:, 0] > 0) ^ (X[:, 1] > 0), "odd", "even")


@pytest.fixture(scope="module")
def fitted():
    X, y = xor()
    return MoEClassifier(2, random_state=0, tol=1e-4).fit(X, y), X, y


def test_probabilities_are_the_gates_mean_of_the_experts(fitted):
    model, X, _ = fitted
    pooled = np.einsum("nk,nkc->nc", model.gate_proba(X), model.expert_proba(X))
    np.testing.assert_allclose(model.predict_proba(X), pooled)
    np.testing.assert_allclose(model.predict_log_proba(X), np.log(pooled), atol=1e-12)
    assert model.classes_.tolist() == ["even", "odd"]


def test_it_generalises(fitted):
    model, _, _ = fitted
    assert model.score(*xor(seed=1)) > 0.96


@pytest.mark.parametrize("pooling", ["highest", "vote"])
def test_poolings(fitted, pooling):
    _, X, y = fitted
    other = MoEClassifier(2, random_state=0, tol=1e-4, pooling=pooling).fit(X, y)
    gate, votes = other.gate_proba(X), other.expert_predict(X) == "odd"
    if pooling == "vote":
        np.testing.assert_allclose(other.predict_proba(X)[:, 1], (gate * votes).sum(axis=1))
    else:
        best = gate.argmax(axis=1)
        assert np.array_equal(other.predict(X) == "odd", votes[np.arange(len(X)), best])


def test_uncertainty_adds_up_to_the_entropy(fitted):
    model, X, _ = fitted
    kinds, proba = model.uncertainty(X), model.predict_proba(X)
    np.testing.assert_allclose(kinds.total, -(proba * np.log(proba)).sum(axis=1), atol=1e-9)
    assert (kinds.noise >= 0).all()
    # Where the gate doubts, at the border between the experts, they contradict each other.
    border = np.abs(kinds.gate_entropy) > 0.5
    assert kinds.between[border].mean() > 5 * kinds.between[~border].mean()


def test_responsibilities_are_bayes_rule(fitted):
    model, X, y = fitted
    seen = model.expert_proba(X)[np.arange(len(X)), :, (y == "odd").astype(int)]
    joint = model.gate_proba(X) * seen
    np.testing.assert_allclose(model.responsibilities(X, y), joint / joint.sum(axis=1, keepdims=True))
    np.testing.assert_allclose(model.log_density(X, y), np.log(joint.sum(axis=1)))


def test_class_weights_are_sample_weights():
    X, y = xor(200)
    weight = {"odd": 3.0, "even": 1.0}
    by_class = MoEClassifier(2, class_weight=weight, random_state=0, n_init=1, tol=1e-3).fit(X, y)
    by_row = MoEClassifier(2, random_state=0, n_init=1, tol=1e-3).fit(X, y, [weight[label] for label in y])
    np.testing.assert_array_equal(by_class.predict_proba(X), by_row.predict_proba(X))
    rare = (y == "even") | (np.arange(200) % 5 == 0)
    plain = MoEClassifier(1, random_state=0).fit(X[rare] * 0, y[rare])
    balanced = MoEClassifier(1, class_weight="balanced", random_state=0).fit(X[rare] * 0, y[rare])
    assert plain.predict_proba([[0, 0]])[0, 1] < 0.3
    np.testing.assert_allclose(balanced.predict_proba([[0, 0]]), 0.5)


def test_weights_equal_repetition():
    X, y = xor(80)
    counts = np.random.default_rng(0).integers(0, 4, size=80)
    weighted = MoEClassifier(2, random_state=0, max_iter=500).fit(X, y, sample_weight=counts)
    repeated = MoEClassifier(2, random_state=0, max_iter=500).fit(X.repeat(counts, axis=0), y.repeat(counts))
    np.testing.assert_allclose(weighted.predict_proba(X), repeated.predict_proba(X), atol=1e-4)


def test_unknown_labels_are_refused(fitted):
    model, X, _ = fitted
    with pytest.raises(UserError, match=r"expected labels of .*'even', 'odd'.*, got .*'strange'"):
        model.log_density(X[:2], ["odd", "strange"])


def test_a_vote_of_numbers_is_refused():
    from mixtura.classical import MoERegressor

    with pytest.raises(UserError, match="expected pooling one of weighted, highest, got 'vote'"):
        MoERegressor(pooling="vote").fit([[0.0], [1.0]], [0.0, 1.0])
