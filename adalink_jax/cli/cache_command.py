"""`adalink cache-task`: writes a seqio task's examples once, to be read by number (TASK_CACHE)."""

from adalink_jax.cli.arguments import add_seqio, gin_parser, option, parse_gin, register, use_seqio
from adalink_jax.configuration.requirements import DATA
from adalink_jax.errors import UserError

SPLITS = ("train", "validation", "test")  # that runs read


def cache_task(argv: list[str]) -> int:
    """`adalink cache-task`."""
    parser = gin_parser(
        "cache-task",
        "Tokenise a seqio task, or each task of a mixture, once, and write its whole examples to FOLDER/TASK. A run with\n"
        "TASK_CACHE = FOLDER, and else the same settings, reads them by number: each host its own rows, from any step. Takes\n"
        "the task's gin files; rerun to resume. Its metrics stay those of the registered task.",
        "adalink cache-task digits_reverse runs/cache --gin_file=gin/tasks/digits.gin",
        option("task", metavar="TASK", help="a registered task or mixture (MIXTURE_OR_TASK_NAME)"),
        option("folder", metavar="FOLDER", help="local, or in a bucket (gs://...); several tasks may share it"),
        option("--split", nargs="+", metavar="SPLIT", help="by default train, validation and test, where the task has them"),
    )  # fmt: skip
    add_seqio(parser)
    flags, options = parse_gin(parser, argv, "gin/tasks/digits.gin")
    flags = flags.binding("DatasetConfig.mixture_or_task_name", repr(options.task))
    from adalink_jax import configuration

    register()
    use_seqio(options)
    configuration.load(flags, require_all=False)
    configuration.require(DATA)
    from adalink_jax import preemption, terminal
    from adalink_jax.data import DatasetConfig, seqio_sources
    from adalink_jax.data.task_cache.cache_writer import CacheWriter

    dataset = DatasetConfig()  # pyright: ignore[reportCallIssue]  gin passes the arguments
    if dataset.own_files is not None:
        raise UserError("Only tasks of seqio are cached; your own files are read by number already.")
    source = seqio_sources()
    tasks = source.find_tasks([options.task], dataset.mixture_or_task_module, dataset.use_cached)
    with terminal.progress() as show:
        for task in tasks:
            show(f"{task.name}: reading its first examples")
            splits = options.split or [split for split in SPLITS if split in task.splits]
            at = lambda lengths, task=task: source.SeqioTask(task, lengths or {}, dataset.use_cached)
            writer = CacheWriter(at, dataset.task_feature_lengths, options.folder, splits)
            preemption.keeps(f"the finished files in {options.folder} are kept")
            for split, files in writer.write(show).items():
                sizes = (
                    sum(shard.examples for shard in files.shards),
                    sum(shard.bytes for shard in files.shards) / 2**20,
                )
                print(
                    f"{task.name}, {split}: {sizes[0]:,} examples, {sizes[1]:,.1f} MiB in {len(files.shards)} files",
                    flush=True,
                )
            if (lengths := writer.identity.lengths) is not None:
                print(
                    f"{task.name} makes other examples at other lengths: a run must have TASK_FEATURE_LENGTHS = {lengths}."
                )
    print(f"Written to {options.folder}; train with --gin.TASK_CACHE=\"'{options.folder}'\".")
    return 0
