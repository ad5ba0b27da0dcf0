"""Ledgers of the two systems that came before: evledger's and PipeWorks', taken in and given back.

`evledger.py` and `pipeworks.py` convert one event, and touch no file; `importing.py` and `exporting.py` do the rest.
"""

from otledger.predecessors.exporting import ExportReport, export_evledger, export_pipeworks
from otledger.predecessors.importing import import_evledger, import_pipeworks
from otledger.predecessors.intake import ImportReport, Refused

__all__ = [
    "ExportReport",
    "ImportReport",
    "Refused",
    "export_evledger",
    "export_pipeworks",
    "import_evledger",
    "import_pipeworks",
]
