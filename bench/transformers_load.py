"""Loads a model in NF4 on the CPU with transformers and bitsandbytes and prints one JSON object: the peer of `gpuledger load`.

    transformers_load.py DIRECTORY

Run in a process of its own, so that its peak memory is its own. `rss_before` is resident after the imports; the peak
includes pages of the checkpoint that transformers maps.
"""

import json
import os
import pathlib
import re
import sys
import time
import warnings

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
warnings.filterwarnings("ignore")

import torch
import transformers


def status_bytes(field):
    return int(re.search(rf"{field}:\s+(\d+) kB", pathlib.Path("/proc/self/status").read_text())[1]) * 1024


def model_class(directory):
    """The class that the checkpoint was written for; a config without one is a bare model."""
    [name, *_] = json.loads((pathlib.Path(directory) / "config.json").read_text()).get("architectures") or ["AutoModel"]
    return getattr(transformers, name, transformers.AutoModel)


def main():
    directory = sys.argv[1]
    cls = model_class(directory)
    nf4 = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
    )
    before = status_bytes("VmRSS")
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak starts here
    start = time.perf_counter()
    model = cls.from_pretrained(directory, quantization_config=nf4, device_map={"": "cpu"}, dtype="auto")
    seconds = time.perf_counter() - start
    parameters = list(model.parameters())
    print(
        json.dumps(
            {
                "seconds": seconds,
                "rss_before": before,
                "peak_rss": status_bytes("VmHWM"),
                "four_bit_weights": sum(getattr(p, "quant_state", None) is not None for p in parameters),
                "parameter_bytes": sum(p.nbytes for p in parameters),
                "version": transformers.__version__,
            }
        )
    )


if __name__ == "__main__":
    main()
