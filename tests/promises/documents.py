"""Promises about what the documents say of the code and the tests."""

import pathlib
import re

from lib.promises import promise

TOP = pathlib.Path(__file__).resolve().parents[2]
# What a duty without a test says instead: it is a deviation, or about something that distd does not do.
EXCUSES = ("deviation", "no size detection", "as C42", "not used", "none are sent", "ignored")


def duties():
    """(id, level, sections, kept by, names of tests) of each row of the checklist."""
    text = (TOP / "docs" / "protocol.md").read_text(encoding="utf-8").partition("## Checklist")[2]
    rows = re.findall(r"^\| (C\d\d) (\S+) \| (.+?) \| (.+?) \| (.+?) \|(.*)\|$", text, re.MULTILINE)
    return [(c, level, re.findall(r"\d+(?:\.\d+)*", sections), kept, re.findall(r"`(\w+)`", tests)) for c, level, _, sections, kept, tests in rows]


def sources():
    rust = [p for p in (TOP / "distd-core").rglob("*.rs") if "target" not in p.parts]
    return {p: p.read_text(encoding="utf-8") for p in [*rust, *(TOP / "tests" / "promises").glob("*.py")]}


def comments(text):
    """(name, comment above) of each function of a file."""
    lines = text.splitlines()
    for at, line in enumerate(lines):
        if found := re.match(r"\s*(?:pub )?(?:fn|def) (\w+)", line):
            first = at
            while first and re.match(r"\s*(?:#|//|@)", lines[first - 1]):
                first -= 1
            yield found[1], " ".join(lines[first:at])


@promise()
def every_duty_of_the_rfc_is_quoted_at_its_code_and_its_test_or_excused(_world):
    listed, texts = duties(), sources()
    assert [c for c, *_ in listed] == [f"C{number:02}" for number in range(1, len(listed) + 1)] and len(listed) > 70, listed
    shown = {}
    for text in texts.values():
        for name, comment in comments(text):
            shown[name] = shown.get(name, "") + comment
    # Comments of tests do not count here.
    code = "\n".join(text for path, text in texts.items() if path.suffix == ".rs" and "tests" not in path.parts)
    code = re.sub(r"// Shows C\d\d.*(?:\n\s*//.*)*", "", code)
    quoted = set(re.findall(r"\d+(?:\.\d+)*", " ".join(re.findall(r"RFC 7574 ((?:§?[\d.]+(?:\(\d\))?(?:, | and | to )?)+)", code))))
    for duty, level, sections, kept, tests in listed:
        if not tests:
            assert any(excuse in kept for excuse in EXCUSES), f"{duty} has neither a test nor an excuse: {kept}"
            continue
        for name in tests:
            assert name in shown, f"{duty}: no test {name}"
            assert duty in shown[name], f"{name} does not say that it shows {duty}"
        if level.startswith("M"):
            assert any(section.rstrip(".") in quoted for section in sections), f"{duty}: no code quotes RFC 7574 {sections}"
