"""The way into the Hugging Face world and back: a plug-in for transformers, its checkpoints, and PEFT's adapters.

Example:
    >>> import tempfile
    >>> from mixtura.models.causal import Causal, CausalConfig
    >>> config = CausalConfig.plain(vocab_size=10, context=16, layers=2, dim=8, heads=2, hidden=16)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = save(Causal(config), folder, format="llama")
    ...     type(load(folder)).__name__
    'Causal'
"""

from mixtura.hub.adapters import load_adapters, save_adapters
from mixtura.hub.checkpoint import convert, load, save, write_probe
from mixtura.hub.plugin import register

__all__ = ["convert", "load", "load_adapters", "register", "save", "save_adapters", "write_probe"]
