"""What a run did not test is said at its end.

Where NEED_BROWSER is set (.ci/run), tests in a browser must run."""

import os
from collections import Counter
from pathlib import Path

import pytest

BROWSER = Path(__file__).parent / "comfyui" / "browser"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    """A browser test that was skipped is an error where a browser is needed."""
    report = yield
    if report.skipped and os.environ.get("NEED_BROWSER") and BROWSER in item.path.parents:
        report.outcome, report.longrepr = "failed", f"NEED_BROWSER is set, and it was skipped: {why(report)}"
    return report


def why(report: pytest.TestReport) -> str:
    """The reason of a skip, which says how to have the test run."""
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return reason.removeprefix("Skipped: ")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter):
    """After all else, above the closing line."""
    yield
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = Counter((Path(one.nodeid.split("::")[0]).parent.as_posix(), why(one)) for one in skipped)
    if not reasons:
        return
    terminalreporter.section("NOT TESTED HERE", red=True, bold=True)
    for (folder, reason), count in reasons.most_common():
        terminalreporter.write_line(f"SKIPPED: {count} test{'s' * (count > 1)} of tests/{folder}: {reason}")
