"""Annotations of the benchmarks in the files they are published in, as records: one module a format. No torch."""

from collections.abc import Callable, Mapping
from functools import partial

from trainer.evaluation.readers.aflw19 import read_aflw19
from trainer.evaluation.readers.celebamask import read_celebamask
from trainer.evaluation.readers.faces68 import read_faces68
from trainer.evaluation.readers.hrnet_csv import read_300w, read_wflw
from trainer.evaluation.readers.lapa import read_lapa
from trainer.evaluation.readers.place import Place
from trainer.evaluation.readers.record import Record
from trainer.evaluation.readers.source import LOOKED_AT

Reader = Callable[[Place], list[Record]]

READERS: Mapping[str, Reader] = {
    "aflw19": read_aflw19, "300w": read_300w, "wflw": read_wflw, "faces68": read_faces68, "lapa": read_lapa,
    "celebamask-hq": read_celebamask,
}  # fmt: skip
"""Benchmark -> what reads its folder; each raises DataError that names what is missing."""

GLANCERS: Mapping[str, Reader] = {
    **READERS, "lapa": partial(read_lapa, most=LOOKED_AT), "celebamask-hq": partial(read_celebamask, most=LOOKED_AT),
}  # fmt: skip
"""What a submission reads of a benchmark on a store: less of those whose annotations are files of each face."""
