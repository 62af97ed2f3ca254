"""A run directory made readable: HTML and text. Never a live object, no torch."""

from dualign.report.build import build_report, summary_text

__all__ = ["build_report", "summary_text"]
