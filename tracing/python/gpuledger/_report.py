"""A leak report as objects. Sizes are bytes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Frame:
    """One call of a stack."""

    function: str
    file: str
    line: int
    python: bool


@dataclass(frozen=True)
class Total:
    bytes: int
    count: int


@dataclass(frozen=True)
class Leak:
    """Blocks that are alike in class, owner, role, stack and holders."""

    leak_class: str  # "superseded", "cycle", "traceback-held", ... (leak_classes.h)
    severity: str  # "info", "warning" or "error"
    owner: str
    role: str
    bytes: int
    count: int
    oldest_seconds: float
    tensor: str  # "float16 [4096, 1024]", "" if it is not known or not the same for all
    holders: tuple[str, ...]  # paths that keep it alive
    suppressed_by: str  # the rule, "" if none
    stack: tuple[Frame, ...]  # where it was allocated, innermost first


@dataclass(frozen=True)
class Share:
    """What one owner has in one role."""

    owner: str
    role: str
    bytes: int
    count: int


@dataclass(frozen=True)
class Growth:
    """An owner and stack whose bytes rose between all marks after the warm-up."""

    owner: str
    bytes_at_marks: tuple[int, ...]
    suppressed_by: str
    stack: tuple[Frame, ...]


@dataclass(frozen=True)
class LeakReport:
    """What is alive, by class. ``str()`` is the text that ``gpuledger report`` prints; true if there is a leak."""

    live_bytes: int  # when the settle began: the classes sum to it
    in_use_bytes: int
    pending_bytes: int
    reserved_bytes: int
    cached_bytes: int
    peak_bytes: int  # of what was in use
    settled: bool
    undecided_why: str
    classes: dict[str, Total]
    leaks: tuple[Leak, ...]
    kept: tuple[Share, ...]  # the largest of what is held on purpose
    growth: tuple[Growth, ...]
    at_peak: tuple[Share, ...]
    has_leaks: bool  # an error that no rule suppresses
    text: str = field(repr=False)
    json: dict[str, Any] = field(repr=False)  # all of it, by tracing/report.schema.json

    def __str__(self) -> str:
        return self.text

    def __bool__(self) -> bool:
        return self.has_leaks

    def of(self, leak_class: str) -> tuple[Leak, ...]:
        """The leaks of one class."""
        return tuple(leak for leak in self.leaks if leak.leak_class == leak_class)


def _stack(frames: list[dict[str, Any]]) -> tuple[Frame, ...]:
    return tuple(Frame(f["function"], f["file"], f["line"], f["python"]) for f in frames)


def _share(share: dict[str, Any]) -> Share:
    return Share(share["owner"], share["role"], share["bytes"], share["count"])


def _leak(leak: dict[str, Any]) -> Leak:
    return Leak(
        leak_class=leak["class"],
        severity=leak["severity"],
        owner=leak["owner"],
        role=leak["role"],
        bytes=leak["bytes"],
        count=leak["count"],
        oldest_seconds=leak.get("oldest_seconds", 0.0),
        tensor=leak.get("tensor", ""),
        holders=tuple(leak["holders"]),
        suppressed_by=leak.get("suppressed_by", ""),
        stack=_stack(leak["stack"]),
    )


def report_of(json: dict[str, Any], text: str, has_leaks: bool) -> LeakReport:
    """The objects of a report's JSON. What it has beyond them stays in ``json``."""
    return LeakReport(
        live_bytes=json["live_bytes"],
        in_use_bytes=json["in_use_bytes"],
        pending_bytes=json["pending_bytes"],
        reserved_bytes=json["reserved_bytes"],
        cached_bytes=json["cached_bytes"],
        peak_bytes=json["peak_bytes"],
        settled=json["settled"],
        undecided_why=json["undecided_why"],
        classes={name: Total(total["bytes"], total["count"]) for name, total in json["classes"].items()},
        leaks=tuple(map(_leak, json["leaks"])),
        kept=tuple(map(_share, json["kept"])),
        growth=tuple(
            Growth(g["owner"], tuple(g["bytes_at_marks"]), g["suppressed_by"], _stack(g["stack"])) for g in json["growth"]
        ),
        at_peak=tuple(map(_share, json["at_peak"])),
        has_leaks=has_leaks,
        text=text,
        json=json,
    )
