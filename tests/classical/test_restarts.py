import numpy as np
from joblib import parallel_config

from mixtura.classical import MoERegressor
from mixtura.classical.em import Progress, Step
from mixtura.classical.restarts import predicted_end
from tests.classical.samples import switching


def progress(*objectives, temperature=1.0):
    steps = tuple(Step(temperature=temperature, objective=o, log_likelihood=o) for o in objectives)
    return Progress(weights=np.ones((1, 1)), steps=steps)


def test_the_end_is_predicted_with_hope():
    assert predicted_end(progress(0.0, 8.0)) == np.inf
    assert predicted_end(progress(0.0, 8.0, 12.0)) == 12 + 5 * 4 + 5 * 4
    assert predicted_end(progress(0.0, 1.0, 3.0)) == np.inf
    assert predicted_end(progress(0.0, 1.0, 1.0)) == 1.0
    assert predicted_end(progress(0.0, 8.0, 12.0, temperature=2.0)) == np.inf


def fit(**options):
    X, y, _ = switching(200)
    y = y + np.where(np.abs(X[:, 0]) > 0.6, 2.0, 0.0)
    return MoERegressor(4, random_state=0, n_init=6, tol=1e-6, **options).fit(X, y)


def test_the_best_start_wins_whatever_the_number_of_processes():
    alone = fit()
    with parallel_config("threading"):
        spread = fit(n_jobs=2)
    assert len(alone.restart_objectives_) == 6
    assert alone.objective_ == alone.restart_objectives_.max()
    np.testing.assert_array_equal(alone.restart_objectives_, spread.restart_objectives_)
    assert alone.history_ == spread.history_


def test_hopeless_starts_are_given_up_and_the_best_is_the_same(monkeypatch):
    complete = fit()
    monkeypatch.setattr("mixtura.classical.restarts.HOPE", 0.0)
    monkeypatch.setattr("mixtura.classical.restarts.ROUND", 5)
    given_up = fit()
    assert given_up.objective_ == given_up.restart_objectives_.max()
    assert (given_up.restart_objectives_ <= complete.restart_objectives_ + 1e-9).all()
    assert (given_up.restart_objectives_ < complete.restart_objectives_ - 1e-6).any()


def test_a_line_is_printed_every_so_many_iterations(capsys):
    X, y, _ = switching(100)
    MoERegressor(2, random_state=0, n_init=1, verbose=5, max_iter=50).fit(X, y)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("iteration 5  log-likelihood ")
    assert all(line.startswith(f"iteration {5 * i}  ") for i, line in enumerate(lines, 1))
