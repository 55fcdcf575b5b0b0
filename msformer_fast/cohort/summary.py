"""What a run came to, and what it tells people at its beginning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from msformer_fast.cohort.journal import FAILED, Journal, Line


@dataclass
class CohortSummary:
    """What a run came to.

    Attributes:
        lines: of every image that was listed and is done or failed, in the order of the listing.
        made: how many images were done by this call; ``failed_now`` how many failed in it.
        left: images that are neither done nor failed, because the run was interrupted.
        ignored: files in the folders that are no images.
        outputs: files that were left out since this package wrote them.
        moved: images of the run that lie elsewhere now, known by their place and contents.
        changed: images that were done before and changed since, or whose outputs are gone; they were done again.
        kept_failures: images that had failed before and were left alone.
        interrupted: stopped by Ctrl-C or a signal.
        index: the page to look at.
        seconds: of the call.
    """

    lines: list[Line] = field(default_factory=list)
    made: int = 0
    failed_now: int = 0
    left: int = 0
    ignored: int = 0
    outputs: int = 0
    moved: int = 0
    changed: int = 0
    kept_failures: int = 0
    interrupted: bool = False
    index: Path = Path()
    seconds: float = 0.0

    @property
    def failures(self) -> list[Line]:
        return [line for line in self.lines if line["status"] == FAILED]

    @property
    def doubtful(self) -> int:
        return sum(bool(line.get("doubtful")) for line in self.lines)


def tell_beginning(
    tell: Callable[[str], object], summary: CohortSummary, journal: Journal, found: int, left: int
) -> None:
    """Say what is left out, gone on with and done again.

    Args:
        found: how many images were listed; ``left`` how many of them are to do.
    """
    if summary.ignored:
        tell(f"left out: {_count(summary.ignored, 'file')} that cannot be an image")
    if summary.outputs:
        tell(f"left out: {_count(summary.outputs, 'file')} that earlier runs wrote")
    if journal.resumed:
        tell(f"going on with the run that is there: {found - left} of {found} images are through, {left} to do")
    if summary.moved:
        tell(f"known by their place and contents: {_count(summary.moved, 'image')} that lay elsewhere before")
    if summary.changed:
        tell(f"done again: {_count(summary.changed, 'image')} changed since, or its outputs gone")
    if summary.kept_failures:
        tell(f"failed before and left alone: {_count(summary.kept_failures, 'image')}; --retry-failed does them again")


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + "s" * (number != 1)
