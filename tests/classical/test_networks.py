"""Networks of torch as experts, by skorch: a Transformer over an image's rows, and a ViT of mixtura's own."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from skorch import NeuralNetClassifier
from torch import nn

from mixtura.classical import MoEClassifier
from mixtura.models.vit import ViT, ViTConfig


class RowTransformer(nn.Module):
    """The eight rows of a digit as a sequence."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Linear(8, 32)
        self.place = nn.Parameter(torch.randn(8, 32) * 0.2)
        self.encoder = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        self.head = nn.Linear(256, 10)

    def forward(self, x):
        rows = self.encoder(self.embedding(x.unflatten(1, (8, 8))) + self.place)
        return self.head(rows.flatten(1)).softmax(-1)


class Vision(nn.Module):
    """A dense ViT over patches of 2 x 2 pixels."""

    def __init__(self):
        super().__init__()
        self.vit = ViT(ViTConfig(image_size=8, patch_size=2, dim=24, heads=2, hidden=48, layers=2, num_experts=0))
        nn.init.normal_(self.vit.position, std=0.5)  # so small a picture needs its places from the start

    def forward(self, x):
        return self.vit(x.view(-1, 1, 8, 8)).softmax(-1)


def cast(X):
    return (X / 16).astype(np.float32)


@pytest.mark.parametrize(
    ("module", "least"), [(RowTransformer, 0.8), (Vision, 0.5)]
)  # a ViT of twelve passes is no more
def test_a_network_is_an_expert(module, least):
    X, y = load_digits(return_X_y=True)
    settings = {"optimizer": torch.optim.Adam, "lr": 4e-3, "max_epochs": 12, "batch_size": 64, "verbose": 0}
    torch.manual_seed(0)
    network = NeuralNetClassifier(module, classes=range(10), train_split=None, **settings)
    expert = make_pipeline(FunctionTransformer(cast), network)
    model = MoEClassifier(2, expert=expert, n_init=1, max_iter=2, random_state=0)
    with pytest.warns(ConvergenceWarning, match="did not converge in 2"):
        model.fit(X[:900], y[:900])
    assert model.score(X[900:], y[900:]) > least
    shares = model.responsibilities(X[:900], y[:900])
    assert (shares.sum(0) > 90).all()  # both experts work
    np.testing.assert_allclose(model.predict_proba(X[900:950]).sum(1), 1, rtol=1e-6)
