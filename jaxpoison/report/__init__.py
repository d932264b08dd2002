"""What a scan leaves behind: the Report and its files (parquet, JSON, HTML, NumPy).

Host only: nothing here imports jax, and importing this package loads no heavy library.
"""

from __future__ import annotations

from jaxpoison.report._report import ClassPicture, Example, Pictures, Report
from jaxpoison.report.certificate import CertificateReport, load_certificate_schema
from jaxpoison.report.explanation import Explanation, class_names_of, load_explanation_schema
from jaxpoison.report.files import FILE_NAMES, OutputError, check_out_dir, load_schema
from jaxpoison.report.html import render_html

__all__ = [
    "FILE_NAMES",
    "CertificateReport",
    "ClassPicture",
    "Example",
    "Explanation",
    "OutputError",
    "Pictures",
    "Report",
    "check_out_dir",
    "class_names_of",
    "load_certificate_schema",
    "load_explanation_schema",
    "load_schema",
    "render_html",
]
