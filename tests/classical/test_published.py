"""Published likelihoods, where the data may be had: R's flexmix has them, under a licence that forbids a copy here."""

import importlib.util
from pathlib import Path

import pytest

from benchmarks import classical_flexmix

installed = Path("/", classical_flexmix.FOLDER).is_dir() and importlib.util.find_spec("rdata") is not None


@pytest.mark.skipif(not installed, reason="needs the data of Debian's r-cran-flexmix and PyPI's rdata, both installed")
@pytest.mark.parametrize(("name", "fit"), [("patent", classical_flexmix.patent), ("NPreg", classical_flexmix.npreg)])
def test_the_published_likelihood_is_reached(name, fit):
    model, X, y = fit(classical_flexmix.frames([name])[name], n_init=20)
    published = classical_flexmix.PUBLISHED[name]
    assert model.log_likelihood_ > published["log-likelihood"] - 1e-3
    assert model.n_parameters_ == published["df"]
    assert model.bic(X, y) < published["BIC"] + 2e-3
    if name == "patent":
        assert model.log_likelihood_ == pytest.approx(published["log-likelihood"], abs=1e-3)
