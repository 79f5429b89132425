"""Metrics as Markdown."""

from collections.abc import Sequence

METRICS = ("image_auroc", "image_ap", "image_f1max", "pixel_auroc", "pixel_ap", "pixel_f1max", "aupro", "aupro_200")
"""The columns of a table, from the highest level to the lowest."""


def table(header: Sequence[str], rows: Sequence[Sequence[str | float | None]]) -> str:
    """A Markdown table with columns aligned for a terminal, too; numbers in [0, 1] as percentages."""

    def text(cell: str | float | None) -> str:
        return "n/a" if cell is None else cell if isinstance(cell, str) else f"{100 * cell:.1f}"

    cells = [list(header), *([text(cell) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = [[row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in cells]
    lines.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def digits(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.6f}"
