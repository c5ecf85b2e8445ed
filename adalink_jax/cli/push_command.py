"""`adalink push`: an adapter with a model card to the Hugging Face Hub."""

import tempfile

from adalink_jax.cli.arguments import option, plain_parser, register
from adalink_jax.cli.checkpoint_commands import print_facts
from adalink_jax.errors import UserError
from adalink_jax.files.places import path_of


def push(argv: list[str]) -> int:
    """`adalink push`."""
    parser = plain_parser(
        "push",
        "Push an adapter to the Hugging Face Hub: its files, config.gin of its run, and a model card made of the run's facts\n"
        "(base, task, scores, baselines, method, versions). The card's Python snippet is run first; if it fails, nothing is\n"
        "pushed. INITIAL_ADAPTER_PATH, Predictor and --adapters then take hf://OWNER/NAME. Needs a token (`hf auth login`).\n"
        "The card shows one input, by default the run's first test sample.",
        "adalink push runs/reviews/adapter hf://OWNER/NAME --private",
        option("adapter", metavar="ADAPTER", help="an adapter's folder, such as runs/reviews/adapter"),
        option("repository", metavar="hf://OWNER/NAME", help="where to push it; created if it is new"),
        option("--private", action="store_true", help="make a new repository private"),
        option(
            "--out", metavar="DIR", help="write what would be pushed to a new folder, to look at it, and push nothing"
        ),
        option(
            "--base", metavar="PATH", help="the base as others find it, if the run had it in a folder: hf://OWNER/NAME"
        ),
        option("--example", metavar="TEXT", help="the input in the card's snippet"),
        option("--force", action="store_true", help="push to a repository that holds other files, beside them"),
    )
    options = parser.parse_args(argv)
    register()
    from adalink_jax import interop

    repo = interop.repo_of(options.repository)
    adapter = interop.describe(options.adapter, options.base, options.example)
    if options.out is not None:
        folder = path_of(options.out)
        if folder.exists():
            raise UserError(f"{options.out} exists; give a new folder.")
        folder.mkdir(parents=True)
        interop.prepare(adapter, repo, folder)
        print_facts(("wrote", f"{options.out}: {', '.join(sorted(file.name for file in folder.iterdir()))}"))
        return 0
    interop.check_repository(repo, options.force)
    with tempfile.TemporaryDirectory() as temporary:
        folder = path_of(temporary)
        interop.prepare(adapter, repo, folder)
        address = interop.push(folder, repo, options.private)
    print_facts(
        ("pushed", address),
        ("example", f"{adapter.example!r} is in the card"),
        (
            "use",
            f"""--gin.INITIAL_ADAPTER_PATH="'{options.repository}'", or al.load_adapter(base, {options.repository!r})""",
        ),
    )
    return 0
