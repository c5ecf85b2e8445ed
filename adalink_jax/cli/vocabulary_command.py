"""`adalink vocabulary`: trains a SentencePiece vocabulary on text."""

import gzip
import json
from collections.abc import Iterator

from adalink_jax.cli.arguments import option, plain_parser
from adalink_jax.errors import UserError


def vocabulary(argv: list[str]) -> int:
    """Runs `adalink vocabulary`."""
    parser = plain_parser(
        "vocabulary",
        "Train a SentencePiece vocabulary (T5's form: pad 0, EOS 1, unknown 2; reading it adds 100 extra ids) for a model that is\n"
        "trained from random weights. The same text gives the same file.",
        "adalink vocabulary ../data/corpus_openstax/train.jsonl.gz --pieces 1024 --out runs/vocabulary",
        option("text", nargs="+", metavar="FILE", help=".txt, or .jsonl with a field `text`; may end in .gz"),
        option("--pieces", type=int, required=True, metavar="N", help="number of pieces, including the 256 bytes"),
        option(
            "--out", required=True, metavar="FOLDER", help="spiece.model is written here; set VOCABULARY to this folder"
        ),
    )
    options = parser.parse_args(argv)
    from adalink_jax.data.vocabularies import load_vocabulary, train_sentencepiece

    print(f"Training {options.pieces:,} pieces: about a minute for a few megabytes.", flush=True)
    path = train_sentencepiece((line for file in options.text for line in _lines(file)), options.pieces, options.out)
    print(f"Written to {path}: {load_vocabulary(str(path)).vocab_size:,} ids with the extra ones.")
    return 0


def _lines(path: str) -> Iterator[str]:
    """Yields the lines of text in a file."""
    name = path.removesuffix(".gz")
    if not name.endswith((".txt", ".jsonl")):
        raise UserError(f"{path} is neither .txt nor .jsonl (with .gz or without).")
    try:
        with (gzip.open if path.endswith(".gz") else open)(path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if name.endswith(".txt"):
                    yield line.rstrip("\n")
                    continue
                row = json.loads(line)
                if not isinstance(row, dict) or not isinstance(row.get("text"), str):
                    raise UserError(f"Line {number} of {path} has no field `text`.")
                yield from row["text"].splitlines()
    except FileNotFoundError as e:
        raise UserError(f"There is no file {path}.") from e
    except (OSError, EOFError, UnicodeDecodeError, json.JSONDecodeError) as e:
        raise UserError(f"{path} is damaged, or not such text ({e}).") from e
