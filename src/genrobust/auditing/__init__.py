"""Is a robustness number real? One check a file, one report."""

from .findings import Finding, Measured, Progression
from .report import AuditReport
from .running import audit
from .subject import AuditBudget

__all__ = ["AuditBudget", "AuditReport", "Finding", "Measured", "Progression", "audit"]
