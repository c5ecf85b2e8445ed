"""What `benchmarks/speed.py` measures: the model, the rows of the table, and who takes part in each."""

import dataclasses

OURS = ("ours adalink", "ours lora", "ours full")
MATMUL = (
    "matmul"  # a float32 matrix product, timed in turn with the others: the machine's limit during the same minutes
)


@dataclasses.dataclass(frozen=True)
class Model:
    """Sizes of a T5 1.1, and the shape of the matrix product that gives the machine's rate.

    Attributes:
      gin: the shipped model, or None for sizes of this class.
      rank: of AdaLink.
      lora_rank: of LoRA, on the queries and values of all attention layers.
      prompt: vectors of prompt tuning.
    """

    vocab_size: int = 32128
    emb_dim: int = 512
    num_heads: int = 6
    head_dim: int = 64
    mlp_dim: int = 1024
    layers: int = 8
    rank: int = 64
    lora_rank: int = 8
    prompt: int = 20
    matmul: int = 2048


SMALL = Model()  # T5 1.1 small, 77 M parameters
TINY = Model(vocab_size=512, emb_dim=64, num_heads=2, head_dim=32, mlp_dim=128, layers=2, matmul=256)


@dataclasses.dataclass(frozen=True)
class Work:
    """One row of the table.

    Attributes:
      kind: "step" (training) or "decode" (exactly `targets` tokens for every row; no end of sequence stops it).
      batch, inputs, targets: rows, tokens in, tokens out.
      beams: 1 is greedy.
      contenders: who does it, in turns.
    """

    name: str
    title: str
    kind: str
    batch: int
    inputs: int
    targets: int
    contenders: tuple[str, ...]
    beams: int = 1

    def shrunk(self) -> "Work":
        """The same work in a second, for a test of the script."""
        return dataclasses.replace(self, batch=min(self.batch, 2), inputs=16, targets=8)


TRAINING = ("torch adalink", "peft lora", "peft prompt", *OURS, "t5x full")
DECODING = ("transformers", "ours decoding")
ROWS = (
    Work("step-128", "step, 8 x 128/32", "step", 8, 128, 32, TRAINING),
    Work("step-512", "step, 4 x 512/128", "step", 4, 512, 128, ("torch adalink", "peft lora", *OURS)),
    Work("greedy-32", "greedy, batch 32, 64 in, 32 out", "decode", 32, 64, 32, DECODING),
    Work("greedy-1", "greedy, batch 1, 64 in, 32 out", "decode", 1, 64, 32, DECODING),
    Work("beams-4", "4 beams, batch 8, 64 in, 32 out", "decode", 8, 64, 32, DECODING, beams=4),
)  # fmt: skip

# The same with a frozen base in each dtype, and scanned layers: `ours adalink DTYPE`, `ours decoding DTYPE`.
DTYPES = ("float32", "bfloat16", "int8", "fp8", "int4", "nf4")
QUANTISED = tuple(
    dataclasses.replace(work, name=f"dtypes-{work.name}", contenders=tuple(f"{who} {dtype}" for dtype in DTYPES))
    for work, who in ((ROWS[0], "ours adalink"), (ROWS[2], "ours decoding"), (ROWS[3], "ours decoding"))
)
