"""Is the 4-bit checkpoint that `gpuledger load --out` wrote any good? transformers and bitsandbytes are the judges.

    compare_embeddings.py MODEL CHECKPOINT      MODEL in full precision, CHECKPOINT its 4-bit copy

Loads three models on the CPU: MODEL as it is, MODEL quantized by bitsandbytes itself, and CHECKPOINT. First the 4-bit
bytes of the last two are compared, weight by weight; then the embeddings of a few sentences (mean pooling) with those
of the full-precision model. Exit code 1 if a byte differs or the embeddings have drifted.
"""

import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import logging
import warnings

import torch
from transformers import AutoModel, AutoTokenizer, BitsAndBytesConfig
from transformers.utils import logging as transformers_logging

SENTENCES = [
    "The cat sat on the warm windowsill.",
    "A kitten is resting by the window.",
    "Quarterly revenue rose by eight percent.",
    "How do I free memory on a graphics card?",
    "The new graphics card has 24 gigabytes of memory.",
    "It rained all week in the mountains.",
    "He plays the violin in a small orchestra.",
    "Sourdough bread needs flour, water, salt and time.",
]
# The mean of bitsandbytes' own NF4 of all-MiniLM-L6-v2 is about 0.976; of a checkpoint read wrongly, 0.3 to 0.4.
SMALLEST_MEAN = 0.96

COLOUR = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def paint(code, text):
    return f"\x1b[{code}m{text}\x1b[0m" if COLOUR else text


def four_bit_weights(model):
    """Name -> (packed bytes, absmax, element count) of every 4-bit weight."""
    weights = {}
    for name, parameter in model.named_parameters():
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            weights[name] = (parameter.data.flatten().view(torch.uint8), state.absmax, state.shape.numel())
    return weights


def differing_bytes(ours, theirs):
    """How many bytes differ between two 4-bit weights, packed codes and block scales together."""
    return sum(
        int((a.contiguous().view(torch.uint8) != b.contiguous().view(torch.uint8)).sum())
        if a.shape == b.shape and a.dtype == b.dtype
        else max(a.nbytes, b.nbytes)
        for a, b in zip(ours[:2], theirs[:2])
    )


@torch.inference_mode()
def embed(model, tokenizer):
    batch = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    hidden = model(**batch).last_hidden_state.float()
    mask = batch["attention_mask"].unsqueeze(-1)
    return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)


def main():
    if len(sys.argv) != 3:
        print(__doc__, file=sys.stderr)
        return 2
    source, checkpoint = sys.argv[1:]
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    transformers_logging.disable_progress_bar()

    tokenizer = AutoTokenizer.from_pretrained(source)
    full = AutoModel.from_pretrained(source, dtype=torch.float32).eval()
    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    theirs = AutoModel.from_pretrained(
        source, quantization_config=nf4, device_map={"": "cpu"}, dtype=torch.float32
    ).eval()
    ours = AutoModel.from_pretrained(checkpoint, device_map={"": "cpu"}).eval()

    # Before any forward pass: on a CPU with AVX-512 BF16, bitsandbytes repacks a weight in place at its first use.
    our_weights, their_weights = four_bit_weights(ours), four_bit_weights(theirs)
    equal = [n for n, w in their_weights.items() if n in our_weights and not differing_bytes(our_weights[n], w)]
    size = sum(packed.nbytes + absmax.nbytes for packed, absmax, _ in our_weights.values())
    count = sum(elements for _, _, elements in our_weights.values())
    same = len(equal) == len(their_weights) == len(our_weights) > 0
    verdict = paint(32, "all equal") if same else paint(31, "NOT equal")
    print(f"4-bit bytes     {len(equal)} of {len(their_weights)} weights as bitsandbytes makes them: {verdict}")
    print(f"                {count:,} weights in {size:,} B: {8 * size / count:.2f} bits each, scales included")
    for name in sorted(set(their_weights) ^ set(our_weights) | set(their_weights) - set(equal))[:5]:
        print(f"                differs: {name}")

    reference = embed(full, tokenizer)
    our_cosine = (embed(ours, tokenizer) * reference).sum(1)
    their_cosine = (embed(theirs, tokenizer) * reference).sum(1)
    good = our_cosine.mean() >= SMALLEST_MEAN
    print(f"cosine          sentence embeddings against full precision, {len(SENTENCES)} sentences")
    print(f"                {'':10} gpuledger  bitsandbytes' own")
    mean = paint("1;32" if good else "1;31", f"{our_cosine.mean():9.4f}")
    print(f"                {'mean':10} {mean}  {their_cosine.mean():17.4f}")
    print(f"                {'smallest':10} {our_cosine.min():9.4f}  {their_cosine.min():17.4f}")
    return 0 if same and good else 1


if __name__ == "__main__":
    sys.exit(main())
