"""Compare what both sides do in a case, as differences.py and device_differences.py explain it."""

import device_differences  # noqa: F401  it adds to DIFFERENCES
from cases import Case
from differences import differences_of
from sides import Outcome, Side


def explained(way: str, case: Case, reference: Side, ours: Side, written_for_ours: Case | None = None) -> list[str]:
    """Return the keys of the differences that show in a case. Raises AssertionError where they do not explain all of it."""
    expected, found = reference.run(case), ours.run(written_for_ours or case)
    keys: list[str] = []
    asked = case
    while expected != found:
        for key, each in differences_of(way).items():
            instead = each.explain(asked, expected, reference.run)
            if instead is not None and instead != (asked, expected):
                keys.append(key)
                asked, expected = instead
                break
        else:
            raise AssertionError(_differs(case, keys, expected, found))
        assert len(keys) < 20, f"{case}: explained in circles by {keys}"
    return keys


def _differs(case: Case, keys: list[str], expected: Outcome, found: Outcome) -> str:
    fields = [name for name in Outcome.__dataclass_fields__ if getattr(expected, name) != getattr(found, name)]
    lines = [f"{case}", f"explained so far: {keys}"]
    for name in fields:
        lines += [f"{name}:", f"  fusermount3: {str(getattr(expected, name))[:2000]}", f"  ours:        {str(getattr(found, name))[:2000]}"]
    return "\n".join(lines)
