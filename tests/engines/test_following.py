"""Logs that are followed: each line once, whenever it comes and wherever it stands."""

from __future__ import annotations

from shardkit.engines.following import JobLog, follow, lines_of


def test_each_line_is_shown_once_though_instances_mix_theirs() -> None:
    looks = [
        [],
        [JobLog("one", "InProgress", ["algo-1: a", "algo-2: x"])],
        [JobLog("one", "InProgress", ["algo-1: a", "algo-1: a", "algo-2: x"]), JobLog("two", "InProgress", ["b"])],
        [JobLog("one", "InProgress", ["algo-1: a", "algo-1: a", "algo-2: x"]), JobLog("two", "InProgress", ["b"])],
        [JobLog("one", "Completed", ["algo-1: a", "algo-1: a", "algo-2: x", "end"]), JobLog("two", "Completed", ["b"])],
    ]
    rest = iter(looks)
    lines = list(follow(lambda: (logs := next(rest), logs is not looks[-1]), look_s=0))
    assert lines == ["algo-1: a", "algo-2: x", "algo-1: a", "== two", "b", "== one", "end"]
    assert next(rest, None) is None


def test_logs_at_once_have_heads_if_they_are_several() -> None:
    logs = [JobLog("one", "Failed", ["a", "b"]), JobLog("two", "Failed", [])]
    assert list(lines_of(logs[:1])) == ["a", "b"]
    assert list(lines_of(logs)) == ["== one (Failed)", "a", "b", "== two (Failed)"]
