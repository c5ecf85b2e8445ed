"""`make lint`: finds wording that readers stumble over, and names without a noun in the code outside `tests/`.

    python tests/check_words.py [PATH_PREFIX ...]

Reads every text file that git tracks or would add. Prints one line per place and exits with 1 if there is any. A line with
the comment `words: ok` is skipped.
"""

import ast
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent
# Pattern (ignoring case) -> what to write instead.
PHRASES = {
    r"\b(go|goes|going|gone|went) on\b(?! (to|the|a|from the)\b)": "resumes, continues",
    r"\btold\b": "reports; message, warning",
    r"\btells (of|which|whether|how|what|that)\b": "reports, says",
    r"(?<!there )(?<!it )\bis no (?!longer|more\b|other|such|room|less|wider|need|way)\w+": "is not a valid ...",
    r"\b(is|are) (?-i:none)\b": "is not a valid ..., is missing",
    r'"""Of (?!\d)': "start with the noun: 'The folder's name.'",
    r"\b(one|an?|file|line|slice|step|layer|array|name|number|column|result|pair|entry|process|folder) an? "
    r"(row|layer|axis|run|cell|image|step|process|line|member|method|leaf|chip|host|example|task|seed)\b": "per row, per layer",
    r"\bof (one's own|yours|ours|mine|theirs)\b": "your own, custom; this package's",
    r"\basks? for it\b": "query its status",
    r"\b(lies|lie|lying|lay) (in|where|on|at|beside|outside|below|under|there|here|as|stay)\b|\bas (it|they) lies?\b": "is stored in",
    r"\brecogni[sz]ed by looking\b": "detected automatically",
    r"\bwhatever is killed\b": "if anything is killed",
    r"\b(cannot|can|could|to) be had\b": "is (not) available",
    r"\b(it|which|that) says so\b|\bsays? otherwise\b": "it reports this; override with",
    r"\bis the others'\b|\bthe house's\b": "name the thing",
}
# Identifiers that mean nothing alone.
NAMES = {"made", "found", "mine", "own", "each", "kept", "given", "told", "theirs", "ours"}
SUFFIXES = {".py", ".md", ".gin", ".jinja", ".ipynb", ".rst", ".toml", ".cff", ".sh"}
NAMED = ("adalink_jax/", "benchmarks/")  # where names are checked
SKIPPED = (
    "tests/data/",
    "docs/results/miniature/",
    "docs/results/miniature_again/",
    "docs/results/t5gemma2_miniature/",
    "tests/check_words.py",
    "LICENSE",
)


def phrases(path: str, text: str) -> list[str]:
    out = []
    for number, line in enumerate(text.splitlines(), 1):
        if "words: ok" in line:
            continue
        for pattern, better in PHRASES.items():
            if match := re.search(pattern, line, re.IGNORECASE):
                out.append(f"{path}:{number}: {match[0]!r}; write: {better}")
    return out


def names(path: str, text: str) -> list[str]:
    """Variables, arguments, attributes and functions called by one of `NAMES`."""
    out, skipped = [], {number for number, line in enumerate(text.splitlines(), 1) if "words: ok" in line}
    for node in ast.walk(ast.parse(text)):
        name = None
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            name = node.id
        elif isinstance(node, ast.arg):
            name = node.arg
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            name = node.name
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            name = node.attr
        if name is not None and name.strip("_") in NAMES and node.lineno not in skipped:
            out.append(f"{path}:{node.lineno}: the name {name!r}; write what it is, with a noun")
    return out


def main(only: list[str]) -> int:
    files = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    out = []
    for path in files.stdout.split():
        file = ROOT / path
        if path.startswith(SKIPPED) or file.suffix not in SUFFIXES or not file.exists():
            continue
        if only and not path.startswith(tuple(only)):
            continue
        text = file.read_text()
        out += phrases(path, text) + (names(path, text) if file.suffix == ".py" and path.startswith(NAMED) else [])
    print("\n".join(out))
    print(f"{len(out)} places." if out else "Words: nothing found.")
    return 1 if out else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
