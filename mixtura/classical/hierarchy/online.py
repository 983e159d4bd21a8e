"""On-line learning of a whole tree: posteriors of a block of rows, then one step of every gate and expert."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixtura.classical.columns import Array, Columns
from mixtura.classical.data import Data
from mixtura.classical.em import responsibilities
from mixtura.classical.experts.base import ExpertFamily, FittedExperts
from mixtura.classical.experts.gaussian import LinearExpert, LinearExperts, LinearTrainer, floor_covariance
from mixtura.classical.experts.logistic import LogisticExpert, LogisticExperts, LogisticTrainer
from mixtura.classical.gates.base import Gate
from mixtura.classical.gates.log_posterior import LogPosteriorGate, LogPosteriorTrainer, log_targets
from mixtura.classical.gates.softmax import FeatureMap, SoftmaxFitted, SoftmaxGate, SoftmaxTrainer
from mixtura.classical.hierarchy.gate import TreeFitted, TreeGate
from mixtura.classical.hierarchy.recursion import PRIOR, LineLearner, SoftmaxLearner
from mixtura.classical.hierarchy.tree import Tree
from mixtura.classical.softmax import SoftmaxFit
from mixtura.errors import UserError

# Noise is counted as that of all rows together for this many rows, before an expert has seen its own.
NOISE_ROWS = 1.0


@dataclass(frozen=True, kw_only=True)
class Frame:
    """The scales in which a linear predictor learns on-line: those of the first block, for good."""

    features: Any
    center: Array
    scale: Array

    def columns(self, X: Array) -> Columns:
        """Give the predictor's columns of some rows."""
        return Columns(X=self.features(X), center=self.center, scale=self.scale)


@dataclass(frozen=True, kw_only=True)
class OnlineLines:
    """Linear Gaussian experts that learn on-line."""

    frame: Frame
    learner: LineLearner
    origin: Array
    floor: Array
    shared: bool
    fitted: LinearExperts

    def step(self, X: Array, y: NDArray[Any], weights: Array, *, log_forgetting: float, move: bool) -> "OnlineLines":
        """Learn from a block: weights (n_samples, n_experts)."""
        learner = self.learner.step(
            self.frame.columns(X), y - self.origin, weights, log_forgetting=log_forgetting, move=move
        )
        scatter, total = learner.scatter, learner.total
        if self.shared:
            scatter = np.broadcast_to(scatter.sum(axis=0), scatter.shape)
            total = np.broadcast_to(total.sum(), total.shape)
        covariance = scatter / np.maximum(total, np.finfo(float).tiny)[:, None, None]
        floored = [floor_covariance(matrix, self.floor, diagonal=self.fitted.diagonal) for matrix in covariance]
        fitted = replace(
            self.fitted,
            covariance=np.stack([matrix for matrix, _ in floored]),
            floored=np.array([low for _, low in floored]),
        )
        if move:
            restored = [self.frame.columns(X[:1]).restore(line) for line in learner.weights]
            fitted = replace(
                fitted,
                coef=np.stack([coef for coef, _ in restored]),
                intercept=np.stack([constant for _, constant in restored]) + self.origin,
            )
        return replace(self, learner=learner, fitted=fitted)


@dataclass(frozen=True, kw_only=True)
class OnlineSoftmax:
    """One softmax regression that learns on-line: a gate of a node, or an expert; `floor` is that of algorithm 2."""

    frame: Frame
    learner: SoftmaxLearner | LineLearner
    fit: SoftmaxFit
    floor: float = 0.0

    def step(self, X: Array, targets: Array, *, log_forgetting: float, move: bool) -> "OnlineSoftmax":
        """Learn from a block of targets (n_samples, n_classes), each row weighted by its sum."""
        columns = self.frame.columns(X)
        learner: SoftmaxLearner | LineLearner
        if isinstance(self.learner, LineLearner):
            mass = targets.sum(axis=1)
            logs = log_targets(targets, mass, floor=self.floor)
            learner = self.learner.step(columns, logs, mass[:, None], log_forgetting=log_forgetting, move=move)
            weights = learner.weights[0]
        else:
            learner = self.learner.step(columns, targets, log_forgetting=log_forgetting, move=move)
            weights = learner.weights
        if not move:
            return replace(self, learner=learner)
        coef, intercept = columns.restore(weights)
        return replace(self, learner=learner, fit=replace(self.fit, coef=coef, intercept=intercept, penalty=0.0))


@dataclass(frozen=True, kw_only=True)
class OnlineLabels:
    """Softmax experts that learn on-line."""

    parts: tuple[OnlineSoftmax, ...]
    fitted: LogisticExperts

    def step(self, X: Array, y: NDArray[Any], weights: Array, *, log_forgetting: float, move: bool) -> "OnlineLabels":
        """Learn from a block: weights (n_samples, n_experts)."""
        labels = np.eye(len(self.fitted.fits[0].coef))[y]
        parts = tuple(
            part.step(X, labels * weights[:, k, None], log_forgetting=log_forgetting, move=move)
            for k, part in enumerate(self.parts)
        )
        return replace(self, parts=parts, fitted=replace(self.fitted, fits=tuple(part.fit for part in parts)))


@dataclass(frozen=True, kw_only=True)
class Online:
    """A tree of gates and experts in the middle of on-line learning; `rows` were seen since it began."""

    tree: Tree
    nodes: tuple[OnlineSoftmax, ...]
    node_features: FeatureMap
    experts: OnlineLines | OnlineLabels
    rows: float = 0.0

    @property
    def gate(self) -> TreeFitted:
        """The gates as they are now."""
        return TreeFitted(
            tree=self.tree,
            nodes=tuple(SoftmaxFitted(features=self.node_features, fit=node.fit) for node in self.nodes),
        )

    @property
    def fitted(self) -> FittedExperts:
        """The experts as they are now."""
        return self.experts.fitted

    def posterior(self, X: Array, y: NDArray[Any]) -> Array:
        """Give the posterior probability of each leaf, shape (n_samples, n_leaves)."""
        log_joint = self.fitted.log_density(X, y)
        log_joint += self.gate.log_proba(X)
        return responsibilities(log_joint)[0]

    def step(self, data: Data, weights: Array, *, log_forgetting: float, move: bool = True) -> "Online":
        """Learn from a block under given weights (n_samples, n_leaves), posteriors times sample weights."""
        nodes = []
        for learner, node in zip(self.nodes, self.tree.inner, strict=True):
            spans = [self.tree.span(child) for child in self.tree.children[node]]
            targets = np.array([weights[:, span].sum(axis=1) for span in spans]).T
            nodes.append(learner.step(data.X, targets, log_forgetting=log_forgetting, move=move))
        experts = self.experts.step(data.X, data.y, weights, log_forgetting=log_forgetting, move=move)
        return replace(self, nodes=tuple(nodes), experts=experts, rows=self.rows + data.total)


def learns_online(family: ExpertFamily, node: Gate) -> bool:
    """Whether these experts and gates have a recursion.

    Example:
        >>> learns_online(LinearExpert(), SoftmaxGate())
        True
    """
    return type(family) in (LinearExpert, LogisticExpert) and type(node) in (SoftmaxGate, LogPosteriorGate)


def begin(data: Data, tree: Tree, *, family: ExpertFamily, node: Gate, seed: int) -> Online:
    """Begin from a division of the first block: every gate and expert makes its first step from zero."""
    online = _blank(data, tree, family=family, node=node, seed=seed)
    gate = TreeGate(tree, node=node)
    shares = gate.divide(data, len(tree.leaves), restart=0, seed=seed)
    return online.step(data, shares * data.sample_weight[:, None], log_forgetting=0.0)


def resume(data: Data, gate: TreeFitted, experts: FittedExperts, *, family: ExpertFamily, node: Gate) -> Online:
    """Begin from what EM has fitted to `data`: parameters stay, their certainty is measured."""
    blank = _blank(data, gate.tree, family=family, node=node, seed=0)
    nodes = tuple(
        _placed(learner, fitted.fit)
        for learner, fitted in zip(blank.nodes, gate.nodes, strict=True)
        if isinstance(fitted, SoftmaxFitted)
    )
    online = replace(blank, nodes=nodes, experts=_experts_placed(blank.experts, experts))
    if nodes and isinstance(gate.nodes[0], SoftmaxFitted):
        online = replace(online, node_features=gate.nodes[0].features)
    weights = online.posterior(data.X, data.y) * data.sample_weight[:, None]
    return online.step(data, weights, log_forgetting=0.0, move=False)


def _placed(part: OnlineSoftmax, fit: SoftmaxFit) -> OnlineSoftmax:
    columns = Columns(X=np.zeros((0, len(part.frame.scale))), center=part.frame.center, scale=part.frame.scale)
    weights = columns.standardise(fit.coef, fit.intercept)
    lines = isinstance(part.learner, LineLearner)
    return replace(part, learner=replace(part.learner, weights=weights[None] if lines else weights), fit=fit)


def _experts_placed(blank: OnlineLines | OnlineLabels, experts: FittedExperts) -> OnlineLines | OnlineLabels:
    if isinstance(blank, OnlineLabels):
        assert isinstance(experts, LogisticExperts)
        parts = tuple(_placed(part, fit) for part, fit in zip(blank.parts, experts.fits, strict=True))
        return OnlineLabels(parts=parts, fitted=experts)
    assert isinstance(experts, LinearExperts)
    frame = blank.frame
    columns = Columns(X=np.zeros((0, len(frame.scale))), center=frame.center, scale=frame.scale)
    lines = [
        columns.standardise(coef, intercept - blank.origin)
        for coef, intercept in zip(experts.coef, experts.intercept, strict=True)
    ]
    learner = replace(blank.learner, weights=np.stack(lines), scatter=np.zeros_like(blank.learner.scatter))
    return replace(blank, learner=replace(learner, total=np.zeros_like(learner.total)), fitted=experts)


def _blank(data: Data, tree: Tree, *, family: ExpertFamily, node: Gate, seed: int) -> Online:
    n_leaves = len(tree.leaves)
    if not learns_online(family, node):
        raise UserError(
            f"expected linear or logistic experts and softmax or least-squares gates for partial_fit, got {family!r} "
            f"and {node!r}; use fit for the others"
        )
    trainer = family.bind(data, n_leaves, seed=seed)
    fitted = trainer.fit(np.tile(data.sample_weight[:, None] / n_leaves, n_leaves), None)
    experts: OnlineLines | OnlineLabels
    if isinstance(trainer, LinearTrainer):
        assert isinstance(fitted, LinearExperts)
        experts = _blank_lines(data, trainer, fitted)
    else:
        assert isinstance(trainer, LogisticTrainer)
        assert isinstance(fitted, LogisticExperts)
        frame = Frame(features=trainer.features, center=trainer.columns.center, scale=trainer.columns.scale)
        part = _blank_softmax(frame, data.n_classes, prior=_ridge(trainer.columns, trainer.family.ridge))
        experts = OnlineLabels(parts=(part,) * n_leaves, fitted=fitted)
    gate = node.bind(data, 2, seed=seed)
    assert isinstance(gate, SoftmaxTrainer | LogPosteriorTrainer)
    frame = Frame(features=gate.features, center=gate.columns.center, scale=gate.columns.scale)
    floor = node.floor if isinstance(node, LogPosteriorGate) else 0.0
    prior = PRIOR + gate.columns.penalty(node.ridge) if floor else _ridge(gate.columns, node.ridge)
    nodes = tuple(_blank_softmax(frame, len(tree.children[inner]), prior=prior, floor=floor) for inner in tree.inner)
    return Online(tree=tree, nodes=nodes, node_features=gate.features, experts=experts)


def _blank_lines(data: Data, trainer: LinearTrainer, fitted: LinearExperts) -> OnlineLines:
    n_outputs, columns = data.y.shape[1], trainer.columns
    origin = np.average(data.y, axis=0, weights=data.sample_weight)
    prior = PRIOR + columns.penalty(trainer.family.alpha)
    learner = LineLearner.of(fitted.n_experts, n_outputs=n_outputs, size=columns.size, prior=prior)
    noise = np.average((data.y - origin) ** 2, axis=0, weights=data.sample_weight)
    scatter = np.tile(NOISE_ROWS * np.diag(noise), (fitted.n_experts, 1, 1))
    return OnlineLines(
        frame=Frame(features=trainer.features, center=columns.center, scale=columns.scale),
        learner=replace(learner, scatter=scatter, total=np.full(fitted.n_experts, NOISE_ROWS)),
        origin=origin,
        floor=trainer.floor,
        shared=trainer.family.shared_variance,
        fitted=fitted,
    )


def _ridge(columns: Columns, ridge: float) -> Array:
    """Give the curvature of a ridge on standardised slopes; the intercept is free."""
    return np.append(np.full(columns.X.shape[1], PRIOR + ridge), PRIOR)


def _blank_softmax(frame: Frame, n_classes: int, *, prior: Array, floor: float = 0.0) -> OnlineSoftmax:
    size = len(frame.scale) + 1
    learner: LineLearner | SoftmaxLearner
    if floor:
        learner = LineLearner.of(1, n_outputs=n_classes, size=size, prior=prior)
    else:
        learner = SoftmaxLearner.of(n_classes, size=size, prior=prior)
    zero = SoftmaxFit(
        coef=np.zeros((n_classes, size - 1)),
        intercept=np.zeros(n_classes),
        value=0.0,
        penalty=0.0,
        n_steps=0,
        converged=True,
    )
    return OnlineSoftmax(frame=frame, learner=learner, fit=zero, floor=floor)
