"""
Counts the memory that training needs in the shapes of Qwen3, and derives the micro-batches that fit on a GPU.

    python benchmarks/activations.py

Autograd's hooks on saved tensors count what a layer keeps for the backward pass under autocast to bfloat16.
PyTorch's fake tensors have shapes but no data, so the command takes 10 seconds and little memory.
"""

import sys
from pathlib import Path

import torch
import transformers
from torch._subclasses.fake_tensor import FakeTensorMode

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from compare import aligned  # noqa: E402

# Hidden size, intermediate size, layers, attention heads, heads of keys and values.
SHAPES = {"0.6B": (1024, 3072, 28, 16, 8), "1.7B": (2048, 6144, 28, 16, 8)}
SHAPES |= {"4B": (2560, 9728, 36, 32, 8), "8B": (4096, 12288, 36, 32, 8)}
VOCABULARY, PROMPT, LIMITS = 151936, 30, [256, 512, 1024, 2048]  # tokens
MEMORY = 80e9 - 8e9  # bytes of a GPU, of which 8 GB stay free


def make_model(hidden, intermediate, layers, heads, kv_heads):
    sizes = dict(hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers, head_dim=128)
    sizes |= dict(num_attention_heads=heads, num_key_value_heads=kv_heads, vocab_size=VOCABULARY)
    config = transformers.Qwen3Config(**sizes, tie_word_embeddings=True)
    return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def saved_bytes(shape, layers, responses):
    """The bytes of all tensors, weights included, that autograd saves for responses of 256 tokens."""
    storages = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage  # Tensors that share memory count once.
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with FakeTensorMode(), hooks, torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        model = make_model(*shape[:2], layers, *shape[3:])
        ids, mask = torch.zeros(2, responses, 256, dtype=torch.long)
        model(input_ids=ids, attention_mask=mask, use_cache=False)
    return sum(storage.nbytes() for storage in storages.values())


def bytes_per_token(shape):
    """The bytes that a layer saves for a token. Weights and logits cancel out in the differences."""
    one, two = (saved_bytes(shape, n, 4) - saved_bytes(shape, n, 2) for n in (1, 2))  # n layers
    return (two - one) / (2 * 256)


def response_bytes(shape, saved, limit, checkpointing=False):
    """The bytes of a response in all layers, and of its logits. saved: bytes a token and layer."""
    hidden, layers = shape[0], shape[2]
    per_token = layers * 4 * hidden + saved if checkpointing else layers * saved  # One layer is recomputed.
    return per_token * (PROMPT + limit), 3 * 2 * VOCABULARY * (limit + 1)


def largest_micro_batch(num_parameters, bytes_of_response):
    """The largest power of 2 that fits in MEMORY, or 0. A parameter takes 24 bytes."""
    responses = int((MEMORY - 24 * num_parameters) / bytes_of_response)
    return 1 << responses.bit_length() >> 1


def main():
    saved = {name: bytes_per_token(shape) for name, shape in SHAPES.items()}
    print(aligned([["kB a token and layer", *SHAPES], ["", *(f"{x / 1e3:.0f}" for x in saved.values())]]))
    with torch.device("meta"):
        parameters = {name: sum(p.numel() for p in make_model(*SHAPES[name]).parameters()) for name in SHAPES}

    count = parameters["0.6B"]
    layers, logits = response_bytes(SHAPES["0.6B"], saved["0.6B"], 256)
    parts = [("policy, gradients, AdamW, reference model", 20 * count, "20 bytes a parameter")]
    parts += [("copy that generates", 2 * count, "2 bytes a parameter")]
    parts += [("bfloat16 copies of the weights", 2 * count, "2 bytes a parameter")]
    parts += [("tensors of the layers", 8 * layers, f"28 layers, 8 x {PROMPT + 256} tokens")]
    parts += [("logits, their gradient, and its copy", 8 * logits, f"3 x 2 bytes x {VOCABULARY} x 8 x 257")]
    parts += [("sum", sum(size for _, size, _ in parts), "")]
    print(f"\n0.6B ({count / 1e6:.0f} million parameters), micro-batches of 8, 256 new tokens\n")
    print(aligned([["part", "GB", ""], *([name, f"{size / 1e9:.1f}", note] for name, size, note in parts)]))

    rows = [["model", "--gradient-checkpointing", *(f"{limit} new tokens" for limit in LIMITS)]]
    for name in [name for name in SHAPES if 24 * parameters[name] < MEMORY]:
        for flag in (False, True):
            sizes = [sum(response_bytes(SHAPES[name], saved[name], limit, flag)) for limit in LIMITS]
            cells = [str(largest_micro_batch(parameters[name], size)) for size in sizes]
            rows.append([name, "yes" if flag else "no", *cells])
    print(f"\nThe largest micro-batch in {MEMORY / 1e9:.0f} GB\n\n{aligned(rows)}")


if __name__ == "__main__":
    main()
