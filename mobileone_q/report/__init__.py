"""What a run cost and won: one dictionary, shown on the terminal, as JSON and as HTML."""

from mobileone_q.report.bounds import print_parity, print_roofline
from mobileone_q.report.build import SCHEMA, update_report
from mobileone_q.report.html import write_html
from mobileone_q.report.terminal import print_accuracy, print_latency, print_sensitivity

__all__ = [
    "SCHEMA",
    "print_accuracy",
    "print_latency",
    "print_parity",
    "print_roofline",
    "print_sensitivity",
    "update_report",
    "write_html",
]
