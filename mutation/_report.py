"""The report: how many faults were found by module, and a word for each that was not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["page", "words"]

WORDS = Path(__file__).parent / "words.txt"
ALIVE = ("survived", "not reached")


def words() -> dict[str, str]:
    """What is known of survivors: a word on a line by itself after ``#``, and the faults that it is about below it."""
    found: dict[str, str] = {}
    word = ""
    for line in WORDS.read_text().splitlines() if WORDS.exists() else ():
        if line.startswith("# "):
            word = line.removeprefix("# ")
        elif line:
            found[line] = word
    return found


def page(found: dict[str, dict[str, Any]], known: dict[str, str]) -> tuple[str, float]:
    """The report in Markdown, and how many percent were found, of those that are possible and were judged."""
    rows: dict[str, list[int]] = {}
    survivors: dict[str, list[str]] = {}
    for name, outcome in found.items():
        if outcome["what"] == "impossible":
            continue
        if outcome["what"] == "broken":
            survivors.setdefault("broken, and not counted: it ended before a test judged it", []).append(name)
            continue
        row = rows.setdefault(name.partition(" | ")[0], [0, 0, 0, 0])
        row[0] += 1
        if outcome["what"] not in ALIVE:
            row[1] += 1
            continue
        word = known.get(name) or ("no test executes it" if outcome["what"] == "not reached" else "no word yet")
        survivors.setdefault(word, []).append(name)
        row[2] += 1
        row[3] += word.startswith("equivalent")
    rows["all"] = [sum(row[column] for row in rows.values()) for column in range(4)]
    text = [
        "| module | faults | found | survived | of these equivalent | found |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for module, (total, killed, alive, same) in rows.items():
        text.append(f"| {module} | {total} | {killed} | {alive} | {same} | {_percent(killed, total):.1f} % |")
    for word, names in sorted(survivors.items(), key=lambda pair: (pair[0].startswith("equivalent"), pair[0])):
        text += ["", f"**{word}** ({len(names)})", "", *(f"* {name}" for name in names)]
    total, killed, *_ = rows["all"]
    return "\n".join(text) + "\n", _percent(killed, total)


def _percent(killed: int, total: int) -> float:
    return 100 * killed / total if total else 0.0
