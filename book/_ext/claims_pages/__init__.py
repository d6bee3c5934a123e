"""Claims and their verdicts, stored records and measured times, put into pages when the book is
built: nothing of it is typed there.

`{claims-summary}` lists the claims, with the sentence that its body, a definition list, has for
each. `{report-counts}`, `{report-claims}`, `{report-records}` and `{report-times}` make up the
report. A claim without a sentence, a figure or a page that is not there: each is a warning of the
build, and so an error.
"""

from typing import Any

from _ext.claims_pages.report import ReportClaims, ReportCounts, ReportRecords, ReportTimes
from _ext.claims_pages.summary import ClaimsSummary


def setup(app: Any) -> dict[str, Any]:
    app.setup_extension("_ext.common.nodes")
    app.add_directive("claims-summary", ClaimsSummary)
    app.add_directive("report-counts", ReportCounts)
    app.add_directive("report-claims", ReportClaims)
    app.add_directive("report-records", ReportRecords)
    app.add_directive("report-times", ReportTimes)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
