import numpy as np

from mixtura.classical import Centroids, MoERegressor
from tests.classical.samples import switching


def test_a_fixed_gate_keeps_its_division():
    X, y, _ = switching(400)
    model = MoERegressor(2, gate="fixed", division=Centroids([[-0.5], [0.5]])).fit(X, y)
    np.testing.assert_allclose(model.gate_proba(X), np.eye(2)[(X[:, 0] > 0).astype(int)], atol=1e-9)
    np.testing.assert_allclose(model.responsibilities(X, y), model.gate_proba(X), atol=1e-9)
    left = np.polyfit(X[X[:, 0] < 0, 0], y[X[:, 0] < 0], 1)
    np.testing.assert_allclose(model.experts_.coef[0, 0, 0], left[0], rtol=1e-6)
    assert model.gate_.n_parameters == 0
    assert model.n_iter_ <= 3
