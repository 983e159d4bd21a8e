"""Text in, token windows out: documents with domains, a byte-level BPE, memory-mapped tokens, a resumable stream."""
