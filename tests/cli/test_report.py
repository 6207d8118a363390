"""`gpuledger run` and `gpuledger report`: a program is recorded, killed, forked; its leaks are reported, counted and checked."""

import json
import os
import pathlib
import signal
import subprocess
import time

import pytest
import schema
from command import BINARY, ROOT, answer, gpuledger

PROGRAM = BINARY.parent / "recorded_program"
SCHEMA = json.loads((ROOT / "tracing/report.schema.json").read_text())
MIB = 1 << 20


def run(folder, *words, flags=()):
    command = [BINARY, "run", *flags, "--", PROGRAM, *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=folder)


def traces(folder):
    return sorted(folder.glob("*.trace"))


@pytest.fixture(scope="module")
def leaky(tmp_path_factory):
    """The trace of a program that settles with two superseded sources."""
    folder = tmp_path_factory.mktemp("leaky")
    run(folder, "load", "grow", "settle", flags=["--no-report"])
    [trace] = traces(folder)
    return trace


def test_run_reports_owner_class_holder_and_the_next_command(tmp_path):
    ran = run(tmp_path, "load", "settle")
    assert (ran.returncode, ran.stdout) == (0, "")
    assert "Superseded leak of 2.1 MB in 2 objects, owner load/layers.{0-1}.up.weight [source], oldest" in ran.stderr
    assert "held by  static sources[] of recorded_program.c" in ran.stderr
    [trace] = traces(tmp_path)
    assert trace.name.startswith("gpuledger.recorded_program.")
    tally = ran.stderr.strip().splitlines()[-3:]
    assert tally[0].startswith("SUMMARY: gpuledger: 2.1 MB leaked in 2 objects")
    assert tally[1].split() == ["trace:", trace.name]
    assert tally[2].startswith(f"next:    gpuledger report {trace.name}")
    # The command it names works, and says the same.
    report = subprocess.run([BINARY, *tally[2].split()[2:]], capture_output=True, text=True, cwd=tmp_path)
    assert report.returncode == 0, report.stderr
    assert "Superseded leak of 2.1 MB in 2 objects" in report.stdout


@pytest.mark.parametrize(
    "words, code",
    [
        (["load", "settle"], 23),
        (["load"], 23),  # never settled, but it ended: what is left is unbalanced
        (["load", "free", "settle"], 0),
        (["load", "free"], 0),
        (["load", "grow", "free", "settle"], 23),  # growth
        ([], 1),  # nothing recorded
        (["settle"], 1),
        (["load", "abort"], 128 + signal.SIGABRT),
        (["load", "settle", "exit", "7"], 7),
    ],
)
def test_check_says_by_its_exit_code(tmp_path, words, code):
    ran = run(tmp_path, *words, flags=["--check"])
    assert ran.returncode == code, ran.stderr


def test_the_programs_own_code_passes_through_without_a_check(tmp_path):
    assert run(tmp_path, "load", "exit", "3").returncode == 3
    assert subprocess.run([BINARY, "run", "--", "/nowhere/program"], cwd=tmp_path, capture_output=True).returncode == 127


def test_an_empty_recording_is_said(tmp_path):
    ran = run(tmp_path)
    assert ran.returncode == 0
    assert "nothing was recorded" in ran.stderr


def test_after_a_kill_the_verdict_is_undecided_and_a_check_cannot_pass(tmp_path):
    with subprocess.Popen([BINARY, "run", "--check", "--", PROGRAM, "load", "free", "grow", "wait"], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True, cwd=tmp_path) as runner:
        assert runner.stdout.readline() == "waiting\n"
        [trace] = traces(tmp_path)  # while it is written
        now = answer("report", trace)
        assert now["live_bytes"] == now["undecided"]["bytes"] == 8 * 4096
        assert not now["settled"]
        os.kill(now["trace"]["process"], signal.SIGKILL)
        stderr = runner.stderr.read()
    assert runner.returncode == 128 + signal.SIGKILL
    assert "undecided: the program was killed, or is still running: nothing was settled" in stderr
    checked = gpuledger("report", trace, "--check", "--growth-warmup", 100)
    assert checked.returncode == 1
    assert "undecided" in checked.stderr


def test_signals_are_handed_on(tmp_path):
    with subprocess.Popen([BINARY, "run", "--", PROGRAM, "load", "wait"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          cwd=tmp_path) as runner:
        runner.stdout.readline()
        began = time.monotonic()
        runner.send_signal(signal.SIGTERM)
        stderr = runner.stderr.read()
    assert runner.returncode == 128 + signal.SIGTERM
    assert "SUMMARY" in stderr and time.monotonic() - began < 60


def test_each_process_has_a_trace_and_a_report(tmp_path):
    ran = run(tmp_path, "load", "free", "fork", flags=["--check"])
    assert ran.returncode == 23, ran.stderr
    assert len(traces(tmp_path)) == 2
    assert ran.stderr.count("SUMMARY") == 2
    assert "Unbalanced leak of 2.1 MB in 2 objects, owner load/layers.{0-1}.up.weight [source]" in ran.stderr


def test_json_is_what_the_schema_says_and_the_classes_sum_to_what_is_live(leaky):
    report = answer("report", leaky, "--blocks")
    assert list(schema.errors(report, SCHEMA)) == []
    assert sum(total["bytes"] for total in report["classes"].values()) == report["live_bytes"] == 2 * MIB + 8 * 4096
    assert report["classes"]["superseded"] == {"bytes": 2 * MIB, "count": 2}
    assert sorted(leak["owner"] for leak in report["leaks"]) == ["load/layers.0.up.weight", "load/layers.1.up.weight"]
    assert report["leaks"][0]["holders"] == ["static sources[] of recorded_program.c"]
    assert sum(share["bytes"] for share in report["at_peak"]) == report["peak_bytes"]
    assert sum(block["bytes"] for block in report["blocks_at_peak"]) == report["peak_bytes"]
    [growth] = report["growth"]
    assert growth["owner"] == "serve/cache" and growth["bytes_at_marks"] == [4096 * i for i in range(1, 9)]
    assert pathlib.Path(report["trace"]["command"].split()[0]).name == "recorded_program"


def test_the_schema_is_checked_and_not_only_read(leaky):
    report = answer("report", leaky)
    del report["trace"]["version"]
    report["leaks"][0]["role"] = "sauce"
    report["peak_bytes"] = -1
    assert len(list(schema.errors(report, SCHEMA))) == 3


def test_rules_suppress_and_the_growths_warm_up_can_be_set(leaky, tmp_path):
    rules = tmp_path / "rules"
    rules.write_text("# known\nowner:load/**\n")
    flags = ["report", leaky, "--check", "--suppressions", rules]
    assert gpuledger(*flags).returncode == 23
    clean = gpuledger(*flags, "--growth-warmup", 6)
    assert clean.returncode == 0, clean.stdout
    assert "Suppressed by rules" in clean.stdout
    rules.write_text("owner\n")
    refused = gpuledger(*flags)
    assert refused.returncode == 2 and "rules" in refused.stderr and "1" in refused.stderr


def test_redacted_nothing_names_the_program_its_weights_or_their_holders(leaky):
    for flags in ([], ["--json"]):
        ran = gpuledger("report", leaky, "--redact", *flags)
        assert ran.returncode == 0
        for name in ("layers", "weight", "recorded_program", "serve/", "sources"):
            assert name not in ran.stdout


def test_what_is_no_trace_is_refused(tmp_path):
    text = tmp_path / "a.txt"
    text.write_text("op,id,size\n")
    for path, said in ((text, "is not a trace"), (tmp_path, "is not a file"), (tmp_path / "none", "No such file")):
        ran = gpuledger("report", path)
        assert ran.returncode == 2 and said in ran.stderr, ran.stderr


def test_a_trace_is_never_written_over_a_file(tmp_path):
    mine = tmp_path / "mine"
    mine.write_text("precious")
    ran = run(tmp_path, "load", flags=["-o", mine])
    assert ran.returncode == 2 and "exists already" in ran.stderr
    assert mine.read_text() == "precious"
