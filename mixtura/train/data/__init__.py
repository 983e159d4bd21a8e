"""Text in, token windows out: documents with domains, a byte-level BPE, memory-mapped tokens, a resumable stream."""

from mixtura.train.data.config import DataConfig
from mixtura.train.data.documents import Document, Reading, embedded_corpus, read_documents
from mixtura.train.data.stream import Batch, TokenStream, validation_batches
from mixtura.train.data.tokenizer import TextTokenizer
from mixtura.train.data.tokens import Corpus, SummaryRow, prepare

__all__ = [
    "Batch",
    "Corpus",
    "DataConfig",
    "Document",
    "Reading",
    "SummaryRow",
    "TextTokenizer",
    "TokenStream",
    "embedded_corpus",
    "prepare",
    "read_documents",
    "validation_batches",
]
