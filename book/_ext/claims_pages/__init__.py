"""Directives that insert claims, verdicts, stored records and measured times into pages.

`{claims-summary}` lists the claims, with the sentences that its body, a definition list, gives.
`{report-counts}`, `{report-claims}`, `{report-records}` and `{report-times}` make up the report. A
claim without a sentence, or a missing figure or page, is a warning, which is fatal in the build.
"""

from typing import Any

from _ext.claims_pages.report import ReportClaims, ReportCounts, ReportRecords, ReportTimes
from _ext.claims_pages.summary import ClaimsSummary


def setup(app: Any) -> None:
    app.setup_extension("_ext.common.nodes")
    app.add_directive("claims-summary", ClaimsSummary)
    app.add_directive("report-counts", ReportCounts)
    app.add_directive("report-claims", ReportClaims)
    app.add_directive("report-records", ReportRecords)
    app.add_directive("report-times", ReportTimes)
