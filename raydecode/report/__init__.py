"""Figures to files: `report.json` for programs, `report.html` for people, with nothing to load from elsewhere.

for name, data in files(figures, facts).items():
    storage.write(name, data)
"""

from raydecode.report.files import files

__all__ = ["files"]
