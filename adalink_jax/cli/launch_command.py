"""`adalink launch`: jobs on other machines, and of several processes on this one."""

import argparse

from adalink_jax import configuration
from adalink_jax.cli.arguments import gin_parser, plain_parser
from adalink_jax.errors import UserError

LAUNCHERS = {
    "local": "several processes on this machine",
    "slurm": "a batch script for a cluster with Slurm",
    "tpu": "Cloud TPU VMs, through gcloud",
    "gke": "a JobSet on Google Kubernetes Engine",
}
CONTROLS = {
    "status": "what its machine says of a job",
    "logs": "what it printed",
    "cancel": "stop it",
}
_EXAMPLES = {
    "local": "--processes 2",
    "slurm": "--gin.TOPOLOGY=\"'h100:16'\" --gin.PARTITION=\"'gpu'\"",
    "tpu": "--gin_file=my_project.gin --gin.TOPOLOGY=\"'v5e:4x8'\"",
    "gke": "--gin_file=my_cluster.gin --gin.TOPOLOGY=\"'v5e:4x8'\"",
}


def launch(argv: list[str]) -> int:
    """`adalink launch`: local, slurm, tpu, gke; status, logs, cancel."""
    texts = LAUNCHERS | CONTROLS
    width = max(map(len, texts))
    parser = argparse.ArgumentParser(
        prog="adalink launch",
        description="Write a job for other machines, and submit it; ask for it, and stop it.\n"
        + "\n".join(f"  {name:<{width}}  {text}" for name, text in texts.items()),
        epilog="example:\n  adalink launch slurm --gin.TOPOLOGY=\"'h100:8'\" -- train --gin_file=gin/runs/quickstart.gin ...\n"
        "  adalink launch status NAME",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("part", choices=tuple(texts))
    part = parser.parse_args(argv[:1]).part
    return _control(part, argv[1:]) if part in CONTROLS else _launch(part, argv[1:])


def _control(part: str, argv: list[str]) -> int:
    parser = plain_parser(
        f"launch {part}", f"{CONTROLS[part].capitalize()}.", f"adalink launch {part} runs/launch/quickstart"
    )
    parser.add_argument("job", metavar="JOB", help="a job's folder, or its name")
    options = parser.parse_args(argv)
    from adalink_jax.launching import control, record

    return getattr(control, part)(record.read(options.job))


def _parser(part: str) -> argparse.ArgumentParser:
    parser = gin_parser(
        f"launch {part}",
        f"Write a job: {LAUNCHERS[part]}. Without --submit it says what it would do, and does none of it.\n"
        f"gin/launch/{part}.gin is read first; its head says what must be set. After -- comes any adalink command.",
        f"adalink launch {part} {_EXAMPLES[part]} -- \\\n"
        "    train --gin_file=gin/runs/quickstart.gin --gin.MODEL_DIR=\"'gs://bucket/run'\"",
    )
    parser.add_argument("--name", help="of the job; made of MODEL_DIR's last part if left out")
    parser.add_argument("--folder", metavar="DIR", help="where the job's files are written (runs/launch/NAME)")
    parser.add_argument("--submit", action="store_true", help="submit it, and, but for Slurm and GKE, wait for its end")
    parser.add_argument(
        "--no_plan", action="store_true", help="submit it without asking `adalink plan` whether it fits"
    )
    if part == "local":
        parser.add_argument("--processes", type=int, metavar="N", help="PROCESSES")
        parser.add_argument("--devices", type=int, metavar="M", help="DEVICES, of each process")
    if part in ("slurm", "tpu"):
        parser.add_argument(
            "--array",
            type=int,
            metavar="N",
            help="N jobs of the same command, each told its number by ADALINK_ARRAY_INDEX",
        )
    if part == "tpu":
        parser.add_argument("--tpu", metavar="NAME", help="a slice that exists, and stays")
        parser.add_argument(
            "--per_host", action="store_true", help="an array's elements, each on one host of the slice"
        )
    return parser


def _launch(part: str, argv: list[str]) -> int:
    cut = argv.index("--") if "--" in argv else len(argv)
    mine, arguments = argv[:cut], tuple(argv[cut + 1 :])
    parser = _parser(part)
    flags, rest = configuration.parse_flags(mine)
    options = parser.parse_args(rest)
    for macro in ("processes", "devices"):
        if getattr(options, macro, None) is not None:
            flags = flags.binding(macro.upper(), str(getattr(options, macro)))
    settings = _settings(part, flags)
    job = _job(options, settings, arguments)

    from adalink_jax import launching
    from adalink_jax.launching import record, submit
    from adalink_jax.launching.job_templates import line

    staged = record.stage(job.flags)
    more = {"tpu": options.tpu, "per_host": options.per_host} if part == "tpu" else {}
    rendered = getattr(launching, part).render(job, settings, staged, **more)
    typed = line(["adalink", "launch", part, *argv])
    written = record.write(job, part, settings, rendered, staged, typed)
    if options.submit:
        if not options.no_plan:
            submit.check_fits(job)
        return submit.submit(job, part, settings)
    print(rendered.files[rendered.main])
    print(f"Written into {job.folder}: {', '.join(written)}")
    planned = None if options.no_plan else submit.plan_words(job)
    commands = [each for each in (planned, rendered.submit) if each]
    print("With --submit:" if commands else "With --submit these processes are started.")
    for each in commands:
        print(f"  {line(each)}")
    return 0


def _settings(part: str, flags: configuration.GinFlags):
    """The launcher's settings, as `gin/launch/PART.gin` and the flags say."""
    from adalink_jax import launching

    configuration.load(flags, extra_files=(f"gin/launch/{part}.gin",))
    settings = getattr(launching, part.capitalize())()
    configuration.check_all_used(flags)
    return settings


def _job(options: argparse.Namespace, settings, arguments: tuple[str, ...]):
    from adalink_jax.cli.main import COMMANDS
    from adalink_jax.configuration.gin_checks import nearest
    from adalink_jax.launching.job import Job, default_name
    from adalink_jax.launching.record import HOME
    from adalink_jax.parallel.accelerators import parse_topology

    known = [name for name in COMMANDS if name != "launch"]
    if not arguments:
        raise UserError(
            "There is no command to run; give one after --, such as -- train --gin_file=gin/runs/quickstart.gin."
        )
    if arguments[0] not in known:
        raise UserError(f"{arguments[0]!r} is no command that can be launched{nearest(arguments[0], known)}.")
    name = options.name or default_name(arguments)
    folder = options.folder or f"{HOME}/{name}"
    return Job(name, arguments, parse_topology(settings.topology), folder, getattr(options, "array", None))
