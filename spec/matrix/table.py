"""table.py DIRECTORY README: writes what the last `make matrix` found into the README, between its two marks.

A cell is green if all of its specs passed. Each that was left out has a number for its reason below the table; one that
failed makes the cell red, and the run fails.
"""

import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ET
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
OWN = "everything else that the module promises"


def cases(file: Path) -> Iterator[tuple[dict[str, str], str, str]]:
    """The properties of each test that ran, its outcome, and why it was left out."""
    for case in ET.parse(file).iter("testcase"):
        properties = {entry.get("name", ""): entry.get("value", "") for entry in case.iter("property")}
        properties.setdefault("name", case.get("name", ""))
        skipped = case.find("skipped")
        if skipped is not None:
            yield properties, "skipped", skipped.get("message", "")
        elif case.find("failure") is not None or case.find("error") is not None:
            yield properties, "failed", ""
        else:
            yield properties, "passed", ""


class Table:
    def __init__(self) -> None:
        self.cells: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        self.reasons: list[str] = []

    def add(self, row: str, column: str, outcome: str, reason: str) -> None:
        self.cells[row, column][outcome] += 1
        if reason:
            if reason not in self.reasons:
                self.reasons.append(reason)
            self.cells[row, column][f"reason {self.reasons.index(reason) + 1}"] += 1

    def cell(self, row: str, column: str) -> str:
        counts = self.cells[row, column]
        numbers = sorted(int(name.split()[1]) for name in counts if name.startswith("reason"))
        text = f"**{counts['failed']} failed**, {counts['passed']} passed" if counts["failed"] else (
            f"✓ {counts['passed']}" if counts["passed"] else "–"
        )
        if counts["skipped"]:
            text += f", {counts['skipped']} not run ({', '.join(map(str, numbers))})"
        return text

    def lines(self, head: str, columns: list[str]) -> Iterator[str]:
        rows = list(dict.fromkeys(row for row, _ in self.cells))
        rows.sort(key=lambda row: row == OWN)
        yield f"| {head} | {' | '.join(columns)} |"
        yield "| --- |" + " --- |" * len(columns)
        for row in rows:
            yield f"| {row} | {' | '.join(self.cell(row, column) for column in columns)} |"


def main(directory: Path, readme: Path) -> int:
    allowed = {skip["reason"] for skip in tomllib.loads((CHECKOUT / "spec/matrix/skips.toml").read_text())["skip"]}
    table, wrong = Table(), []
    for properties, outcome, reason in cases(directory / "prosodys.xml"):
        if "version" in properties:
            table.add(properties["row"] or OWN, properties["version"], outcome, reason)
        if outcome == "failed":
            wrong.append(f"failed: {properties['name']}")
        elif outcome == "skipped" and reason not in allowed:
            wrong.append(f"left out without a reason in skips.toml: {properties['name']}")
    luas = list(cases(directory / "luas.xml"))
    wrong += [f"{outcome}: {properties['name']}" for properties, outcome, _ in luas if outcome != "passed"]

    columns = list(dict.fromkeys(column for _, column in table.cells))
    columns.sort(key=lambda version: [int(part) for part in version.split(".")])
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=10"], cwd=CHECKOUT, capture_output=True, text=True, check=True
    ).stdout.strip()
    passed = sum(outcome == "passed" for _, outcome, _ in luas)
    text = [
        *table.lines("specs passed on Prosody", columns), "",
        *(f"{number}. {reason}" for number, reason in enumerate(table.reasons, 1)), "",
        f"The library on Lua 5.1, LuaJIT, 5.2, 5.3 and 5.4, each reading what the others stored: "
        f"{passed} of {len(luas)} specs passed. {datetime.now(UTC):%Y-%m-%d}, commit {commit}.",
    ]
    before, begin, rest = readme.read_text().partition("<!-- make matrix -->\n")
    _, end, after = rest.partition("<!-- end of make matrix -->\n")
    if not begin or not end:
        wrong.append(f"{readme} has no place for the table")
    else:
        readme.write_text(before + begin + "\n".join(text) + "\n" + end + after)
    for line in wrong:
        print(line)
    print(f"matrix: {sum(c['passed'] for c in table.cells.values()) + passed} passed, {len(wrong)} failed")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
