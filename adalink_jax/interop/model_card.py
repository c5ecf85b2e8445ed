"""The model card of an adapter: README.md with the Hub's metadata, made of its file's facts and of its run's."""

import ast
import dataclasses
from collections.abc import Mapping
from typing import Any

import jinja2
from etils import epath

from adalink_jax.checkpoints import AdapterFacts, open_adapter
from adalink_jax.errors import UserError
from adalink_jax.files.places import path_of
from adalink_jax.files.run_files import Summary
from adalink_jax.files.typed_json import find_object, read_state
from adalink_jax.files.whole_file import write_text
from adalink_jax.interop.folded import TEMPLATES
from adalink_jax.models.quantised import TABLE
from adalink_jax.version import __version__

HUB, BUNDLED, CHAT = "hf://", "bundled:", "chat:"
PICTURE = "picture.png"
EXAMPLE = "some text"  # the snippet's input, where no run has a better one
PEFT_METHODS = ("LoRA", "PromptTuning")  # whose files PEFT reads too
# Settings of a run that its card lists, and what it calls them.
LISTED = {
    "DatasetConfig.batch_size": "batch size",
    "DatasetConfig.task_feature_lengths": "most tokens",
    "DatasetConfig.train_examples": "examples",
    "warmup_cosine.peak": "learning rate",
    "adamw.weight_decay": "weight decay",
    "Setup.random_seed": "seed",
    "FileTask.inputs": "inputs",
    "FileTask.targets": "targets",
}


@dataclasses.dataclass(frozen=True)
class Described:
    """An adapter, and what is known of its run.

    Attributes:
      folder: the adapter's folder.
      facts: the facts in its file.
      run: the run's folder; None for an adapter without one.
      summary: the contents of the run's `summary.json`; {} without a run.
      base: the base as others find it: `hf://OWNER/NAME` or `bundled:NAME`.
      vocabulary: of the run, if it is not the base's own.
      example: the input of the snippet.
    """

    folder: epath.Path
    facts: AdapterFacts
    run: epath.Path | None
    summary: Mapping[str, Any]
    base: str
    vocabulary: str | None
    example: str

    @property
    def needs_image(self) -> bool:
        """Whether the run's samples have images, and not the blank ones of a table of texts."""
        blank = self.setting("FileTask.blank_image") is True  # 0.1.0 drew them
        return self.run is not None and not blank and (self.run / "samples.png").exists()

    def setting(self, name: str) -> Any:
        """The value of one of the run's settings; None if the run does not have it."""
        return _value(self.summary.get("settings", {}).get(name, "None"))


def describe(folder: str, base: str | None = None, example: str | None = None) -> Described:
    """Opens an adapter, and reads the run in the folder around it, if there is one.

    Args:
      folder: the adapter's folder, such as `runs/mine/adapter`.
      base: the base model as others find it; None for that of the run.
      example: an input for the snippet; None for the first sample of the run.

    Raises:
      CheckpointError: for a folder that is not an adapter.
      UserError: for a base or a vocabulary that others do not have.
    """
    _, facts = open_adapter(folder)
    path = path_of(folder)
    summary = read_state(path.parent / "summary.json", Summary) or {}
    run = path.parent if summary else None
    settings = summary.get("settings", {})
    used = _value(settings.get("Setup.initial_checkpoint_path", "None"))
    shared = base or used or facts.base.name
    if not shared.startswith((HUB, BUNDLED)):
        raise UserError(
            f"The base of {folder} is {shared}, which others may not have; name it with --base hf://OWNER/NAME. Its fingerprint is checked."
        )
    vocabulary = _value(settings.get("FileTask.vocabulary", settings.get("PublishedData.vocabulary", "None")))
    samples = find_object(run / "samples.json") if run else None
    first = samples["samples"][0]["inputs"] if samples and samples.get("samples") else EXAMPLE
    return Described(path, facts, run, summary, shared, _shared_vocabulary(vocabulary, used, shared), example or first)


def _shared_vocabulary(vocabulary: str | None, used: str | None, base: str) -> str | None:
    """The vocabulary as others find it; None for the base's own."""
    if vocabulary is None:
        return None
    chat, place = CHAT if vocabulary.startswith(CHAT) else "", vocabulary.removeprefix(CHAT)
    if place in (used, base) or (place == "bytes" and base.startswith(BUNDLED)):
        return f"{CHAT}{base}" if chat else None
    if place != "bytes" and not place.startswith(HUB):
        raise UserError(
            f"The run's vocabulary is {place}, which others do not have; train with one that is on the Hub."
        )
    return vocabulary


def _value(text: str) -> Any:
    """The value of a gin literal; the text of a reference."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _stored(adapter: Described) -> dict[str, Any]:
    """The settings that quantise the exact base as in training; {} for an adapter of the exact base."""
    kind, _, block = (adapter.facts.base.precision or "").partition("/")
    exact = adapter.setting("Setup.quantised_exact") or TABLE
    settings = {"FROZEN_DTYPE": kind or None, "QUANTISED_BLOCK": int(block) if block else None}
    settings["QUANTISED_EXACT"] = exact if kind and tuple(exact) != TABLE else None
    return {name: value for name, value in settings.items() if value is not None}


def snippet(adapter: Described, place: str) -> str:
    """Python that loads the adapter from `place` and predicts one output."""
    more = f", vocabulary={adapter.vocabulary!r}" if adapter.vocabulary else ""
    more += f", settings={stored!r}" if (stored := _stored(adapter)) else ""
    lengths = adapter.setting("DatasetConfig.task_feature_lengths")
    lines = [
        "import adalink_jax as al",
        "",
        f"base = al.load_base({adapter.base!r}{more})",
        f"model = al.load_adapter(base, {place!r})",
        *([f"model.lengths = {lengths!r}  # the most tokens, as in training"] if lengths else []),
        f"print(model({adapter.example!r}{f', {PICTURE!r}' if adapter.needs_image else ''}))",
    ]
    return "\n".join(lines) + "\n"


def write_card(adapter: Described, repo: str, folder: epath.Path) -> None:
    """Writes README.md, of `huggingface_hub`'s making.

    Args:
      adapter: the adapter.
      repo: `OWNER/NAME`.
      folder: destination.
    """
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    facts, summary, metric = adapter.facts, adapter.summary, adapter.summary.get("metric")
    task = summary.get("task") or facts.task
    kind = "image-text-to-text" if adapter.needs_image else "text2text-generation"
    result = lambda split, name, value: EvalResult(
        task_type=kind, dataset_type=task or "unknown", dataset_name=task or "unknown", dataset_split=split,
        metric_type=name, metric_name=name, metric_value=round(value, 6),
    )  # fmt: skip
    scores = {name: value for name, value in summary.get("scores", {}).items() if value is not None}
    results = [result("test", name, value) for name, value in scores.items()]
    if summary.get("validation") is not None:
        results.insert(0, result("validation", metric, summary["validation"]))
    method = facts.method.rpartition(".")[2].removesuffix("Adapter")
    data = ModelCardData(
        library_name="adalink-jax",
        base_model=adapter.base.removeprefix(HUB).partition("@")[0] if adapter.base.startswith(HUB) else None,
        base_model_relation="adapter" if adapter.base.startswith(HUB) else None,
        pipeline_tag=kind,
        tags=["adalink-jax", "jax", method.lower(), *(["peft"] if facts.method in PEFT_METHODS else [])],
        metrics=sorted(scores) or None,
        model_name=repo.partition("/")[2] if results else None,
        eval_results=results or None,
    )
    splits, rows = _scores(adapter)
    about = {
        "card_data": data.to_yaml(),
        "base": facts.base,
        "name": repo.partition("/")[2],
        "method": method,
        "task": task,
        "version": facts.extra.get("version") or summary.get("versions", {}).get("adalink-jax") or __version__,
        "snippet": snippet(adapter, f"{HUB}{repo}"),
        "needs_image": adapter.needs_image,
        "picture": PICTURE,
        "metric": metric,
        "splits": splits,
        "scores": rows,
        "other_scores": [f"{name} {value:.4f}" for name, value in scores.items() if name != metric],
        "chosen": summary.get("validation") is not None,
        "nothing_learned": summary.get("nothing_learned"),
        "facts": _facts(adapter),
        "commands": _commands(repo) if adapter.run else [],
    }
    template = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    text = template.from_string((TEMPLATES / "model_card.md.jinja").read_text()).render(about)
    write_text(folder / "README.md", str(ModelCard(text)))


def _scores(adapter: Described) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """The splits, and a row per model, and per method without one, of scores by the metric that chose the step."""
    summary, metric = adapter.summary, adapter.summary.get("metric")
    shown = lambda value: "" if value is None else f"{value:.4f}"
    if metric is None or f"adapted_{metric}" not in summary:
        stated = {name: value for name, value in (adapter.facts.metrics or {}).items() if isinstance(value, float)}
        return ["test"], [(name.replace("_", " "), [shown(value)]) for name, value in stated.items()]
    baselines = summary.get("baselines", {}).items()
    return ["validation", "test"], [
        (
            "this adapter" if summary.get("step") else "this adapter, before training",
            [shown(summary.get("validation")), shown(summary[f"adapted_{metric}"])],
        ),
        ("the frozen base", ["", shown(summary.get(f"frozen_{metric}"))]),
        *((name, ["", shown(of_metrics[metric])]) for name, of_metrics in baselines if metric in of_metrics),
    ]


def _facts(adapter: Described) -> list[tuple[str, str]]:
    """The rows of the card's table on training."""
    facts, summary = adapter.facts, adapter.summary
    code = lambda value: f"`{value}`".replace("|", "\\|")
    rows = [
        ("base", code(adapter.base)),
        ("base stored as", code(facts.base.precision) if facts.base.precision else None),
        ("fingerprint of the base", code(facts.base.fingerprint) if facts.base.fingerprint else None),
        ("method", code(facts.summary)),
        ("trained parameters", f"{summary['trainable']:,}" if summary.get("trainable") else None),
        ("frozen parameters", f"{summary['frozen']:,}" if summary.get("frozen") else None),
        (
            "step",
            f"{facts.step:,} of {summary['steps']:,}" if facts.step is not None and summary.get("steps") else None,
        ),
        ("seconds", f"{summary['seconds']:,.0f}" if summary.get("seconds") else None),
        *((label, code(value)) for name, label in LISTED.items() if (value := adapter.setting(name)) is not None),
        *((name, version) for name, version in (summary.get("versions") or facts.versions or {}).items()),
        ("written by", facts.extra.get("written_by")),
    ]
    return [(name, str(value)) for name, value in rows if value is not None]


def _commands(repo: str) -> list[str]:
    """Commands that score the adapter, and train it again."""
    download = f"hf download {repo} config.gin --local-dir ."
    score = f"""adalink eval --gin_file=config.gin --gin.INITIAL_ADAPTER_PATH="'{HUB}{repo}'" """.strip()
    return [download, score, """adalink train --gin_file=config.gin --gin.MODEL_DIR="'runs/again'" """.strip()]
