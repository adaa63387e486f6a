"""The report of a study: one HTML page that needs nothing else, or the same as JSON or Markdown.

:func:`gather` reads the records, :func:`report_of` makes sections of them, each a title, sentences, a data frame and
figures of it; ``to_html``, ``to_json`` and ``to_markdown`` write these down. Nothing is trained.
"""

from ww_opt.reporting.page.facts import Facts, gather
from ww_opt.reporting.page.model import model_report
from ww_opt.reporting.page.report import Report, report_of, write_text
from ww_opt.reporting.page.section import Drawing, Section

__all__ = ["Drawing", "Facts", "Report", "Section", "gather", "model_report", "report_of", "write_text"]
