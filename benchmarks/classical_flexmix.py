"""Do we reach the likelihoods that R's flexmix publishes? Patents (Poisson experts, gate), NPreg (Gaussian, no gate).

    python -m benchmarks.classical_flexmix

The data belong to flexmix (GPL) and are not part of this project: Debian's package `r-cran-flexmix` is downloaded to a
temporary folder by `apt-get download`, and read with PyPI's `rdata` (`pip install rdata`). Published: the vignettes of
flexmix 2.3, "flexmix-intro" (NPreg) and "mixture-regressions" (patent, after Wang, Cockburn and Puterman 1998).
"""

import argparse
import importlib
import io
import subprocess
import tarfile
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import save
from mixtura.classical import ConstantGate, LinearExpert, MoERegressor, PoissonExpert, SoftmaxGate

PUBLISHED = {
    "patent": {"log-likelihood": -197.6753, "df": 10, "AIC": 415.3505, "BIC": 437.8355},
    "NPreg": {"log-likelihood": -642.5451, "df": 9, "AIC": 1303.09, "BIC": 1332.775},
}
FOLDER = "usr/lib/R/site-library/flexmix/data"


def frames(names: list[str]) -> dict[str, Any]:
    """Read data frames of flexmix from Debian's package, installed or downloaded."""
    if (installed := Path("/", FOLDER)).is_dir():
        return {name: frame((installed / f"{name}.RData").read_bytes(), name) for name in names}
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            ["apt-get", "download", "--quiet", "r-cran-flexmix"], cwd=folder, check=True, capture_output=True
        )
        (package,) = Path(folder).glob("r-cran-flexmix*.deb")
        files = subprocess.run(["dpkg-deb", "--fsys-tarfile", str(package)], check=True, capture_output=True).stdout
        found = {}
        with tarfile.open(fileobj=io.BytesIO(files)) as archive:
            for name in names:
                member = archive.extractfile(f"./{FOLDER}/{name}.RData")
                assert member is not None
                found[name] = frame(member.read(), name)
    return found


def frame(content: bytes, name: str) -> Any:
    """Read one data frame from an .RData file."""
    rdata = importlib.import_module("rdata")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # rdata has no constructor for R's formulas and says so
        return rdata.conversion.convert(rdata.parser.parse_data(content))[name]


def patent(table: Any, *, n_init: int) -> tuple[MoERegressor, np.ndarray, np.ndarray]:
    """Three Poisson experts of lgRD, a softmax gate of RDS, neither penalised."""
    X = table[["lgRD", "RDS"]].to_numpy(dtype=float)
    y = table["Patents"].to_numpy(dtype=float)
    model = MoERegressor(
        3,
        expert=PoissonExpert(columns=[0]),
        gate=SoftmaxGate(ridge=0.0, columns=[1]),
        n_init=n_init,
        tol=1e-9,
        max_iter=5000,
        random_state=0,
    )
    return model.fit(X, y), X, y


def npreg(table: Any, *, n_init: int) -> tuple[MoERegressor, np.ndarray, np.ndarray]:
    """Two Gaussian experts of x and its square, mixed by constant weights."""
    X = table[["x"]].to_numpy(dtype=float)
    y = table["yn"].to_numpy(dtype=float)
    expert = LinearExpert(degree=2)
    model = MoERegressor(2, expert=expert, gate=ConstantGate(), n_init=n_init, tol=1e-9, max_iter=5000, random_state=0)
    return model.fit(X, y), X, y


def main() -> None:
    """Fit both, print published against ours, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--starts", type=int, default=20)
    options = parser.parse_args()
    data = frames(["patent", "NPreg"])
    result: dict[str, Any] = {"starts": options.starts}
    for name, fit in [("patent", patent), ("NPreg", npreg)]:
        model, X, y = fit(data[name], n_init=options.starts)
        ours = {
            "log-likelihood": round(model.log_likelihood_, 4),
            "df": model.n_parameters_,
            "AIC": round(model.aic(X, y), 4),
            "BIC": round(model.bic(X, y), 4),
        }
        reached = int((model.restart_objectives_ > model.objective_ - 1e-2).sum())
        result[name] = {"published": PUBLISHED[name], "ours": ours, "starts that reach it": reached}
        print(f"{name}: {reached} of {options.starts} starts reach the best")
        for figure, published in PUBLISHED[name].items():
            print(f"  {figure:15s} published {published:12.4f}   ours {ours[figure]:12.4f}")
    labels = data["NPreg"]["class"].to_numpy(dtype=int) - 1
    found = model.responsibilities(X, y).argmax(axis=1)
    result["NPreg"]["rows in the right class"] = int(max((found == labels).sum(), (found != labels).sum()))
    print(f"  rows in the right class: published 190, ours {result['NPreg']['rows in the right class']} of 200")
    print(save("classical_flexmix", result))


if __name__ == "__main__":
    main()
