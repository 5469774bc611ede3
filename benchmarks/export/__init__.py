"""A run in the formats of others: one file per format, and one function that writes any of them."""

from .formats import ExportFormat, export_run

__all__ = ["ExportFormat", "export_run"]
