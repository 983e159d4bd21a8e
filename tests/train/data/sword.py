"""Two small Bibles in the format of their packages, as pysword reads it."""

import struct
import zlib

from pysword.books import BibleStructure

from mixtura.train.data import bibles

_CONF = """[{name}]
DataPath=./modules/texts/ztext/{name}/
ModDrv=zText
SourceType=OSIS
Encoding=UTF-8
CompressType=ZIP
BlockType=BOOK
Versification={canon}
Lang={language}
Description={name}
"""
_RECORD = struct.Struct("<IIH")


def write_bibles(folder, *texts):
    """Write a module for each language: (book, chapter, verse) -> its text with markup."""
    for name, language, canon, verses in zip(bibles.MODULES, bibles.LANGUAGES, ("NRSVA", "KJV"), texts, strict=True):
        data = folder / "modules/texts/ztext" / name
        data.mkdir(parents=True)
        (folder / "mods.d").mkdir(exist_ok=True)
        (folder / "mods.d" / f"{name}.conf").write_text(_CONF.format(name=name, canon=canon, language=language))
        structure = BibleStructure(canon.lower(), ["ot", "nt"])
        parts = {"ot": {}, "nt": {}}
        for (book, chapter, verse), text in verses.items():
            ((testament, (index,)),) = structure.ref_to_indicies([book], chapter, verse).items()
            parts[testament][index] = text.encode()
        for testament, found in parts.items():
            block, records = b"", [_RECORD.pack(0, 0, 0)] * (max(found, default=0) + 1)
            for index, text in found.items():
                records[index] = _RECORD.pack(0, len(block), len(text))
                block += text
            packed = zlib.compress(block)
            (data / f"{testament}.bzv").write_bytes(b"".join(records))
            (data / f"{testament}.bzs").write_bytes(struct.pack("<III", 0, len(packed), len(block)))
            (data / f"{testament}.bzz").write_bytes(packed)
