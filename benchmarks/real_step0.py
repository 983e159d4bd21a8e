"""Published dense models made mixtures: do they compute at step 0 what they computed before?

    python -m benchmarks.real_step0

SmolLM2-135M, a decoder: logits of text, the MLPs of all 30 blocks replaced. all-MiniLM-L6-v2, an encoder in
transformers' own module: embeddings of sentences (mean over tokens, of length 1), all 6 MLPs replaced. Both come out of
packages that pip fetches, and are checked by hash.
"""

import argparse
import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import mixtura as mx
from benchmarks.common import save
from benchmarks.real_data import MINILM, PACKAGES, SMOLLM2, text_windows, tokenizer_of
from mixtura.surgery.batches import call

INITS: dict[str, dict[str, Any]] = {
    "upcycle, 8 experts, k=2": {"init": "upcycle", "num_experts": 8, "k": 2},
    "split in 4, 8 experts, k=4": {"init": mx.surgery.Split(parts=4), "num_experts": 8, "k": 4},
    "cluster, 8 experts, k=8": {"init": "cluster", "num_experts": 8, "k": 8},
}


@torch.no_grad()
def compare(model: nn.Module, batch: Any, *, match: str, output: Callable[[Any], Tensor]) -> dict[str, Any]:
    """For each way to make the mixtures: the largest difference of outputs, and the same over their deviation."""
    wanted, found = output(call(model, batch)), {}
    for name, how in INITS.items():
        torch.manual_seed(0)
        sparse = mx.moefy(copy.deepcopy(model), match, **how, data=[batch])
        difference = float((output(call(sparse, batch)) - wanted).abs().max())
        found[name] = {
            "mixtures": sum(isinstance(module, mx.MoE) for module in sparse.modules()),
            "parameters": sum(p.numel() for p in sparse.parameters()),
            "largest difference": difference,
            "over the deviation": difference / float(wanted.std()),
        }
        print(json.dumps({name: found[name]}), flush=True)
    return found


def decoder(packages: Path) -> dict[str, Any]:
    """SmolLM2 on held-out text of three domains."""
    folder = SMOLLM2.fetch(packages)
    model = mx.hub.load(folder / SMOLLM2.weights).eval()
    windows = text_windows(tokenizer_of(folder, gguf_file=SMOLLM2.weights), length=64, train=1, val=1)
    ids_BL = torch.cat([each.val[:, :-1] for each in windows.values()])
    return compare(model, ids_BL, match="*.feed_forward", output=lambda logits: logits)


def encoder(packages: Path) -> dict[str, Any]:
    """MiniLM on sentences."""
    from transformers import AutoModel

    folder = MINILM.fetch(packages)
    batch = tokenizer_of(folder)(SENTENCES, padding=True, return_tensors="pt")
    mask_BL1 = batch["attention_mask"].unsqueeze(-1)

    def embed(out: Any) -> Tensor:
        mean_BD = (out.last_hidden_state * mask_BL1).sum(1) / mask_BL1.sum(1)
        return nn.functional.normalize(mean_BD, dim=-1)

    model = AutoModel.from_pretrained(folder).eval()
    near = embed(call(model, batch))
    assert near[0] @ near[1] > near[0] @ near[2], "the embeddings of like sentences are not alike"
    return compare(model, dict(batch), match="*.layer.*", output=embed)


SENTENCES = [
    "A mixture of experts sends each token to a few of many small networks.",
    "Every word is routed to some out of a large number of subnetworks.",
    "The bakery on the corner opens at seven.",
    "Rain is expected in the north by the evening, with wind from the sea.",
]


def main() -> None:
    """Compare both models, and write benchmarks/results/real_step0.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, default=PACKAGES, help="folder of the downloaded packages")
    options = parser.parse_args()
    models: Mapping[str, Any] = {"SmolLM2-135M": (SMOLLM2, decoder), "all-MiniLM-L6-v2": (MINILM, encoder)}
    rows = {
        name: {"package": package.name, "sha256": package.sha256, "inits": make(options.packages)}
        for name, (package, make) in models.items()
    }
    print(save("real_step0", {"models": rows}))


if __name__ == "__main__":
    main()
