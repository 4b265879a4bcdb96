"""What happened, for a reader: tables of sizes and metrics, pictures of the plan and of the search."""

from upop.report.plots import allocation, allocation_figure, search_curve, search_figure
from upop.report.tables import SitesRow, comparison, console, human, removed_table, render, sites_table

__all__ = [
    "SitesRow",
    "allocation",
    "allocation_figure",
    "comparison",
    "console",
    "human",
    "removed_table",
    "render",
    "search_curve",
    "search_figure",
    "sites_table",
]
