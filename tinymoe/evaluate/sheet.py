"""Numbers with names and units, for people and for programs."""

import math
from dataclasses import dataclass, field
from typing import Any

Row = tuple[str, float, str]  # name, number, unit


@dataclass
class Sheet:
    """Numbers with names and units, in groups. Any kind of model can fill one in."""

    subject: str
    groups: dict[str, list[Row]] = field(default_factory=dict)

    def add(self, group: str, *rows: Row) -> None:
        if rows:  # a group without numbers would be a heading over nothing
            self.groups.setdefault(group, []).extend(rows)

    def value(self, group: str, name: str) -> float:
        return next(value for found, value, _ in self.groups[group] if found == name)

    def table(self) -> str:
        """For people: a line for each number, values flush right in one column."""
        rows = [(name, _shown(value), unit) for group in self.groups.values() for name, value, unit in group]
        wide = [max((len(row[i]) for row in rows), default=0) for i in range(2)]
        lines = [self.subject]
        for group, numbers in self.groups.items():
            lines += ["", group]
            for name, value, unit in numbers:
                lines.append(f"  {name:<{wide[0]}}  {_shown(value):>{wide[1]}}  {unit}".rstrip())
        return "\n".join(lines)

    def plain(self) -> dict[str, Any]:
        """For JSON: subject, and {group: {name: {value, unit}}}, null for a value that is not finite."""
        groups = {
            group: {
                name: {"value": value if math.isfinite(value) else None, "unit": unit} for name, value, unit in rows
            }
            for group, rows in self.groups.items()
        }
        return {"subject": self.subject, "numbers": groups}


def _shown(value: float) -> str:
    """Whole numbers and large ones without decimals, others to four digits."""
    return f"{value:,.0f}" if float(value).is_integer() or abs(value) >= 1000 else f"{value:#.4g}"
