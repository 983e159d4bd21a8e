import numpy as np
import pytest
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import RandomForestClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, WhiteKernel
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsRegressor
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler
from sklearn.svm import SVC, SVR, LinearSVC
from sklearn.tree import DecisionTreeRegressor

from mixtura.classical import EstimatorExpert, LinearExpert, LogisticExpert, MoEClassifier, MoERegressor
from mixtura.classical.experts.estimator import estimator_values, resample, weight_argument
from mixtura.errors import UserError
from tests.classical.samples import switching


def test_a_linear_estimator_gives_the_mixture_of_native_linear_experts():
    X, y, _ = switching()
    theirs = MoERegressor(2, expert=LinearRegression(), random_state=0, n_init=2).fit(X, y)
    ours = MoERegressor(2, expert="linear", random_state=0, n_init=2).fit(X, y)
    np.testing.assert_allclose(theirs.predict(X), ours.predict(X), atol=1e-3)
    assert theirs.log_likelihood_ == pytest.approx(ours.log_likelihood_, abs=0.5)
    assert isinstance(theirs.experts_.estimators[0], LinearRegression)


@pytest.mark.parametrize(
    "estimator",
    [
        SVR(C=10.0),
        DecisionTreeRegressor(max_depth=2, random_state=0),
        EstimatorExpert(KNeighborsRegressor(15), weighting="hard", cv=3),
        EstimatorExpert(GaussianProcessRegressor(RBF() + WhiteKernel(), random_state=0), weighting="hard"),
        EstimatorExpert(
            MLPRegressor(hidden_layer_sizes=(8,), max_iter=400, solver="lbfgs", alpha=0.1, random_state=0),
            weighting="resample",
        ),
        make_pipeline(StandardScaler(), PolynomialFeatures(2), Ridge()),
    ],
    ids=lambda value: type(getattr(value, "estimator", value)).__name__,
)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_any_regressor_is_an_expert(estimator):
    X, y, _ = switching(160)
    model = MoERegressor(2, expert=estimator, random_state=0, n_init=1, max_iter=8).fit(X, y)
    assert model.score(X, y) > 0.85
    assert np.isfinite(model.log_likelihood_)
    assert (model.experts_.variance > 0).all()


@pytest.mark.parametrize("classifier", [SVC(), LinearSVC()], ids=lambda c: type(c).__name__)
def test_a_classifier_without_probabilities_is_refused_and_calibration_helps(classifier):
    rng = np.random.default_rng(0)
    X = rng.uniform(-1, 1, size=(120, 2))
    y = (X[:, 0] > 0) ^ (X[:, 1] > 0)
    with pytest.raises(UserError, match=r"expected an expert with predict_proba, got .*calibrate=True"):
        MoEClassifier(2, expert=classifier).fit(X, y)
    model = MoEClassifier(2, expert=EstimatorExpert(classifier, calibrate=True), n_init=1, max_iter=4, random_state=0)
    with pytest.warns(UserWarning, match="did not converge"):
        model.fit(X, y)
    assert model.score(X, y) > 0.8
    assert isinstance(model.experts_.estimators[0], CalibratedClassifierCV)


def test_kinds_may_be_mixed():
    X, y, _ = switching(300)
    model = MoERegressor(expert=["linear", Ridge(), DecisionTreeRegressor(max_depth=3)], random_state=0, n_init=1)
    model.fit(X, y)
    assert model.n_experts_ == 3
    assert model.expert_predict(X).shape == (300, 3)
    assert model.score(X, y) > 0.9


def test_frozen_experts_stay_as_they_are_and_get_a_noise_level_each():
    X, y, right = switching(800)
    left = LinearRegression().fit(X[right == 0], y[right == 0])
    other = LinearRegression().fit(X[right == 1], y[right == 1] + 0.5)
    model = MoERegressor(expert=[FrozenEstimator(left), FrozenEstimator(other)], random_state=0).fit(X, y)
    np.testing.assert_array_equal(model.expert_predict(X), np.column_stack([left.predict(X), other.predict(X)]))
    noise = np.sqrt([part.variance.item() for part in model.experts_.parts])
    np.testing.assert_allclose(noise, [0.1, 0.5], rtol=0.2)
    objectives = [step.objective for step in model.history_]
    assert (np.diff(objectives) >= -1e-9 * np.abs(objectives[1:])).all()
    assert model.score(X, y) > max(left.score(X, y), other.score(X, y)) + 0.3


def test_a_gate_over_finished_classifiers_beats_each_of_them():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(900, 2))
    y = np.where(X[:, 0] > 0, X[:, 1] > 0, X[:, 1] < 0).astype(int)
    sides = [X[:, 0] > 0, X[:, 0] <= 0]
    finished = [FrozenEstimator(LogisticRegression().fit(X[side], y[side])) for side in sides]
    dynamic = MoEClassifier(expert=finished, gate="softmax", random_state=0, tol=1e-4).fit(X, y)
    static = MoEClassifier(expert=finished, gate="constant", random_state=0).fit(X, y)
    alone = [one.score(X, y) for one in finished]
    assert max(alone) < 0.6
    assert static.score(X, y) < 0.6
    assert dynamic.score(X, y) > 0.97


def test_one_class_in_an_experts_share_is_no_error():
    X = np.array([[-2.0], [-1.5], [-1.0], [1.0], [1.5], [2.0]] * 4)
    y = (X[:, 0] > 0).astype(int)
    division = y.copy()
    model = MoEClassifier(2, expert=LogisticRegression(), division=division, n_init=1, random_state=0).fit(X, y)
    assert model.score(X, y) == 1.0
    hard = MoEClassifier(2, expert=EstimatorExpert(SVC(), calibrate=True), division=division)
    assert hard.set_params(tol=1e-3).fit(X, y).score(X, y) == 1.0


def test_classes_that_an_expert_never_saw_keep_a_little_probability():
    fitted = GaussianNB().fit([[0.0], [0.1], [1.0], [1.1]], [0, 0, 2, 2])
    proba = estimator_values(fitted, np.array([[0.05]]), np.array([0, 1, 2]))
    assert proba[0, 1] == pytest.approx(1e-4)
    np.testing.assert_allclose(proba.sum(axis=1), 1.0)


def test_a_finished_classifier_of_other_labels_is_refused():
    other = FrozenEstimator(LogisticRegression().fit([[0.0], [1.0]], ["a", "b"]))
    with pytest.raises(UserError, match="expected an expert of the classes"):
        MoEClassifier(expert=[other, other]).fit([[0.0], [1.0], [2.0]], ["a", "c", "c"])


def test_labels_may_be_words():
    X, _, right = switching(200)
    names = np.array(["left", "right"])[right]
    model = MoEClassifier(2, expert=RandomForestClassifier(5, max_depth=2, random_state=0), n_init=1, random_state=0)
    assert set(model.fit(X, names).predict(X)) == {"left", "right"}
    assert model.score(X, names) > 0.85


def test_held_out_predictions_keep_a_nearest_neighbour_honest():
    rng = np.random.default_rng(0)
    X, y = rng.uniform(size=(200, 1)), rng.normal(size=200)
    with pytest.warns(UserWarning, match="floor"):
        proud = MoERegressor(1, expert=KNeighborsRegressor(1)).fit(X, y)
    honest = MoERegressor(1, expert=EstimatorExpert(KNeighborsRegressor(1), cv=5)).fit(X, y)
    assert proud.experts_.variance.item() < 1e-5
    assert honest.experts_.variance.item() == pytest.approx(2.0, rel=0.3)
    assert honest.experts_.held_out is None


def test_weights_reach_the_last_step_of_a_pipeline():
    assert weight_argument(make_pipeline(StandardScaler(), make_pipeline(Ridge()))) == "pipeline__ridge__sample_weight"
    assert weight_argument(KNeighborsRegressor()) is None
    with pytest.raises(UserError, match="expected an expert that takes sample_weight"):
        MoERegressor(2, expert=EstimatorExpert(KNeighborsRegressor(), weighting="sample_weight")).fit(
            [[0.0], [1.0]], [0, 1]
        )


def test_resampling_draws_rows_by_weight():
    weight = np.random.default_rng(0).random(50)
    weight[7] = 0.0
    counts = np.bincount(resample(weight, seed=0), minlength=50)
    assert counts.sum() == 50
    assert counts[7] == 0
    assert (np.abs(counts - 50 * weight / weight.sum()) < 1.0).all()


@pytest.mark.parametrize(
    ("expert", "message"),
    [
        (LogisticRegression(), "expected an expert for regression"),
        ("logistic", "expected an expert for regression, got 'logistic'"),
        ("line", r"expected expert one of linear, ridge, .* got 'line'"),
        (EstimatorExpert(Ridge(), weighting="soft"), "expected weighting one of"),
        (EstimatorExpert(Ridge(), cv=1), "expected cv a whole number of at least 2"),
        ([], "expected at least one expert"),
        ([LinearExpert(), LogisticExpert()], "expected an expert for regression"),
        (Ridge, "expected expert one of"),
    ],
)
def test_experts_that_are_none_are_refused(expert, message):
    with pytest.raises(UserError, match=message):
        MoERegressor(expert=expert).fit([[0.0], [1.0], [3.0]], [0.0, 1.0, 2.0])


class TenOutputs(LogisticRegression):
    """A classifier that gives ten columns whatever labels it saw, as a network of ten outputs does."""

    def predict_proba(self, X):
        return np.full((len(X), 10), 0.1)


def test_probabilities_of_other_classes_than_the_shares_are_refused():
    X = np.arange(12.0)[:, None]
    with pytest.raises(
        UserError, match=r"expected probabilities of the 2 classes in an expert's share, got 10 columns"
    ):
        MoEClassifier(2, expert=TenOutputs(), random_state=0).fit(X, np.arange(12) // 6)
