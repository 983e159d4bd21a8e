"""A fitted hierarchy as a value to look at: every node with its gate, its share of the rows and its deviance."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from mixtura.classical.columns import Array
from mixtura.classical.data import Data
from mixtura.classical.experts.base import ExpertFamily, FittedExperts
from mixtura.classical.experts.gaussian import LinearExperts
from mixtura.classical.gates.softmax import SoftmaxFitted
from mixtura.classical.hierarchy.gate import TreeFitted
from mixtura.classical.hierarchy.settle import settled

BINS = 10


@dataclass(frozen=True, kw_only=True)
class SoftNode:
    """One node of a fitted hierarchy.

    `share` is the mean probability with which rows come down to it and `histogram` (10 bins from 0 to 1, as shares of
    the rows) how sure that is: a hard split fills the outer bins. With targets both are posterior probabilities, as in
    the histogram tree of Jordan and Jacobs. `deviance` is what would be left if the tree were cut here, the node being
    one expert fitted to the rows by their share in it; `below` what the subtree leaves. Both are relative squared
    errors (1 is the error of the overall mean) in regression, nats per row in classification. What was not measured is
    None.

    Example:
        >>> SoftNode(number=0, depth=0, children=(), expert=0, gate=None, text="expert 0").is_leaf
        True
    """

    number: int
    depth: int
    children: tuple[int, ...]
    expert: int | None
    gate: Any
    text: str
    share: float | None = None
    histogram: tuple[float, ...] | None = None
    deviance: float | None = None
    below: float | None = None

    @property
    def is_leaf(self) -> bool:
        """Whether an expert sits here."""
        return self.expert is not None


@dataclass(frozen=True)
class SoftTree:
    """The nodes of a fitted hierarchy, in preorder: `nodes[0]` is the root.

    Example:
        >>> leaf = SoftNode(number=0, depth=0, children=(), expert=0, gate=None, text="y = 1", share=1.0)
        >>> print(SoftTree((leaf,)).text())
        leaf 0 (share 1.00): y = 1
    """

    nodes: tuple[SoftNode, ...]

    def text(self) -> str:
        """Give the tree as indented lines, one a node."""
        return "\n".join("|   " * node.depth + _line(node) for node in self.nodes)


def _line(node: SoftNode) -> str:
    name = f"leaf {node.expert}" if node.is_leaf else f"gate {node.number}"
    facts = [] if node.share is None else [f"share {node.share:.2f}"]
    facts += [] if node.deviance is None else [f"deviance {node.deviance:.3g}"]
    facts += [] if node.below is None or node.is_leaf else [f"below {node.below:.3g}"]
    known = f" ({', '.join(facts)})" if facts else ""
    return f"{name}{known}: {node.text}"


@dataclass(frozen=True, kw_only=True)
class Measures:
    """What is measured at every node: arrays by node number, deviances only with targets.

    Shapes: reach (n_samples, n_nodes), the probabilities of coming down to each node; sample_weight (n_samples,).
    """

    reach: Array
    sample_weight: Array
    deviance: Array | None = None
    below: Array | None = None

    def at(self, node: int) -> dict[str, Any]:
        """Give the fields of a `SoftNode`."""
        weight = self.sample_weight / self.sample_weight.sum()
        counts, _ = np.histogram(np.minimum(self.reach[:, node], 1.0), bins=BINS, range=(0.0, 1.0), weights=weight)
        return {
            "share": float(weight @ self.reach[:, node]),
            "histogram": tuple(float(count) for count in counts),
            "deviance": None if self.deviance is None else float(self.deviance[node]),
            "below": None if self.below is None else float(self.below[node]),
        }


def measure(data: Data, gate: TreeFitted, experts: FittedExperts, *, family: ExpertFamily | None) -> Measures:
    """Measure posterior shares, what every subtree leaves, and what each node leaves as one expert of the family."""
    tree, nodes = gate.tree, range(len(gate.tree.children))
    log_gate = gate.log_proba(data.X)
    log_joint = experts.log_density(data.X, data.y) + log_gate
    posterior = np.exp(log_joint - np.logaddexp.reduce(log_joint, axis=1)[:, None])
    reach = tree.node_weights(posterior)
    weights = np.asfortranarray(reach * data.sample_weight[:, None])
    total = np.maximum(weights.sum(axis=0), np.finfo(float).tiny)
    below = (weights * _losses(data, experts, log_gate, parts=[tree.span(v) for v in nodes])).sum(axis=0) / total
    deviance = None
    if family is not None:
        alone = settled(family.bind(data, len(nodes)), weights)
        single = _losses(data, alone, np.zeros_like(reach), parts=[slice(v, v + 1) for v in nodes])
        deviance = (weights * single).sum(axis=0) / total
    return Measures(reach=reach, sample_weight=data.sample_weight, deviance=deviance, below=below)


def _losses(data: Data, experts: FittedExperts, log_gate: Array, *, parts: list[slice]) -> Array:
    """Give the loss of each row under each part of the experts, pooled by the gate: (n_samples, n_parts)."""
    outputs = np.exp(experts.log_proba(data.X)) if data.n_classes else experts.mean(data.X)
    mean = np.average(data.y, axis=0, weights=data.sample_weight)
    variance = np.average((data.y - mean) ** 2, axis=0, weights=data.sample_weight)
    columns = []
    for part in parts:
        inside = log_gate[:, part] - np.logaddexp.reduce(log_gate[:, part], axis=1)[:, None]
        pooled = np.einsum("nk,nkm->nm", np.exp(inside), outputs[:, part])
        if data.n_classes:
            chosen = pooled[np.arange(data.n_samples), data.y]
            columns.append(-np.log(np.maximum(chosen, np.finfo(float).tiny)))
        else:
            columns.append(((data.y - pooled) ** 2 / np.where(variance > 0, variance, 1.0)).mean(axis=1))
    return np.array(columns).T


def describe(
    gate: TreeFitted, experts: FittedExperts, *, names: list[str], measures: Measures | None, max_terms: int
) -> SoftTree:
    """Put every node into words and numbers."""
    tree = gate.tree
    number_of = {node: k for k, node in enumerate(tree.leaves)}
    nodes = []
    for node, children in enumerate(tree.children):
        own = gate.at(node) if children else None
        text = (
            gate_text(own, names, max_terms)
            if children
            else leaf_text(experts, number_of[node], names, max_terms=max_terms)
        )
        nodes.append(
            SoftNode(
                number=node,
                depth=tree.depths[node],
                children=children,
                expert=number_of.get(node),
                gate=own,
                text=text,
                **({} if measures is None else measures.at(node)),
            )
        )
    return SoftTree(tuple(nodes))


def gate_text(gate: Any, names: list[str], max_terms: int) -> str:
    """Say when a gate sends a row where: log-odds for two children, scores for more."""
    if not isinstance(gate, SoftmaxFitted) or gate.features.transformer is not None:
        return f"{type(gate).__name__} on features of X"
    chosen = names if gate.features.columns is None else [names[column] for column in gate.features.columns]
    if len(gate.coef) == 2:
        odds = linear_text(
            gate.coef[0] - gate.coef[1], gate.intercept[0] - gate.intercept[1], chosen, max_terms=max_terms
        )
        return f"first child with log-odds {odds}"
    scores = [linear_text(c, i, chosen, max_terms=max_terms) for c, i in zip(gate.coef, gate.intercept, strict=True)]
    return "scores " + " | ".join(scores)


def leaf_text(experts: FittedExperts, k: int, names: list[str], *, max_terms: int) -> str:
    """Say what an expert says: its line, if it is one."""
    if not isinstance(experts, LinearExperts) or experts.features.degree > 1:
        return f"expert {k} of {type(experts).__name__}"
    chosen = names if experts.features.columns is None else [names[column] for column in experts.features.columns]
    lines = [
        linear_text(c, i, chosen, max_terms=max_terms)
        for c, i in zip(experts.coef[k], experts.intercept[k], strict=True)
    ]
    noise = np.sqrt(np.diag(experts.covariance[k]))
    return "; ".join(f"y = {line} (noise {sd:.2g})" for line, sd in zip(lines, noise, strict=True))


def linear_text(coef: Array, intercept: float, names: list[str], *, max_terms: int) -> str:
    """Write a linear function with its largest terms first.

    Example:
        >>> linear_text(np.array([0.5, -2.0, 0.1]), 1.0, ["a", "b", "c"], max_terms=2)
        '-2 b +0.5 a +... +1'
    """
    order = np.argsort(-np.abs(coef), kind="stable")[:max_terms]
    terms = [f"{coef[i]:+.3g} {names[i]}" for i in order]
    terms += ["+..."] if len(coef) > max_terms else []
    return " ".join([*terms, f"{intercept:+.3g}"]).removeprefix("+")
