"""`adalink launch`: jobs on other machines, and jobs of several processes on this machine."""

import argparse
import sys
import typing

from adalink_jax import configuration
from adalink_jax.cli.arguments import gin_parser, option, parse, plain_parser
from adalink_jax.errors import UserError

if typing.TYPE_CHECKING:
    from adalink_jax import launching

LAUNCHERS = {
    "local": "several processes on this machine",
    "slurm": "a batch script for a cluster with Slurm",
    "tpu": "Cloud TPU VMs, through gcloud",
    "gke": "a JobSet on Google Kubernetes Engine",
    "ray": "tasks on an existing Ray cluster",
}
CONTROLS = {
    "status": "query a job's status",
    "logs": "print a job's output",
    "cancel": "cancel a job",
}
_EXAMPLES = {
    "local": "--processes 2",
    "slurm": "--gin.TOPOLOGY=\"'h100:16'\" --gin.PARTITION=\"'gpu'\"",
    "tpu": "--gin_file=my_project.gin --gin.TOPOLOGY=\"'v5e:4x8'\"",
    "gke": "--gin_file=my_cluster.gin --gin.TOPOLOGY=\"'v5e:4x8'\"",
    "ray": "--gin.TOPOLOGY=\"'h100:1'\"",
}

_CANARY = option(
    "--canary",
    action="store_true",
    help="first run ten steps on one host of the same chips, with the job's own base, data and bucket, as the job NAME-canary-TIME; the "
    "job follows if they succeed",
)
_ARRAY = option(
    "--array", type=int, metavar="N", help="run the command N times, each with its number in ADALINK_ARRAY_INDEX"
)
_OPTIONS = {
    "local": (
        option("--processes", type=int, metavar="N", help="number of processes (PROCESSES)"),
        option("--devices", type=int, metavar="M", help="devices per process (DEVICES)"),
    ),
    "ray": (_ARRAY,),
    "slurm": (_ARRAY, _CANARY),
    "gke": (_CANARY,),
    "tpu": (
        _ARRAY,
        _CANARY,
        option("--tpu", metavar="NAME", help="run on an existing slice, which is kept (TPU)"),
        option(
            "--per_host", action="store_true", help="run each element of an array on one host of the slice (PER_HOST)"
        ),
    ),
}


def launch(argv: list[str]) -> int:
    """`adalink launch`: local, slurm, tpu, gke, ray; status, logs, cancel."""
    texts = LAUNCHERS | CONTROLS
    width = max(map(len, texts))
    parser = plain_parser(
        "launch",
        "Write and submit a job, query its status, print its logs, cancel it.\n"
        + "\n".join(f"  {name:<{width}}  {text}" for name, text in texts.items()),
        "adalink launch slurm --gin.TOPOLOGY=\"'h100:8'\" -- train --gin_file=gin/runs/quickstart.gin ...\n"
        "  adalink launch status NAME",
        option("part", choices=tuple(texts)),
    )
    part = parser.parse_args(argv[:1]).part
    return _control(part, argv[1:]) if part in CONTROLS else _launch(part, argv[1:])


def _control(part: str, argv: list[str]) -> int:
    parser = plain_parser(
        f"launch {part}",
        f"{CONTROLS[part].capitalize()}.",
        f"adalink launch {part} runs/launch/quickstart",
        option("job", metavar="JOB", help="the job's folder or name"),
    )
    options = parser.parse_args(argv)
    from adalink_jax.launching import control, record

    return getattr(control, part)(record.read(options.job))


def _parser(part: str) -> argparse.ArgumentParser:
    wait = "" if part in ("slurm", "gke") else ", and wait until it has ended"
    return gin_parser(
        f"launch {part}",
        f"Write a job: {LAUNCHERS[part]}. Without --submit, only write its files, and print the main one.\n"
        f"Reads gin/launch/{part}.gin first, whose header lists the required settings. After -- comes any adalink command.",
        f"adalink launch {part} {_EXAMPLES[part]} -- \\\n"
        "    train --gin_file=gin/runs/quickstart.gin --gin.MODEL_DIR=\"'gs://bucket/run'\"",
        option("--name", help="the job's name; by default the last part of MODEL_DIR"),
        option("--folder", metavar="DIR", help="folder for the job's files (runs/launch/NAME)"),
        option("--submit", action="store_true", help=f"submit the job{wait}"),
        option("--no_plan", action="store_true", help="submit without checking by `adalink plan` that it fits"),
        *_OPTIONS.get(part, ()),
    )


def _launch(part: str, argv: list[str]) -> int:
    cut = argv.index("--") if "--" in argv else len(argv)
    flags, options = parse(_parser(part), argv[:cut])
    for macro in ("processes", "devices", "tpu", "per_host"):
        value = getattr(options, macro, None)
        if value is not None and value is not False:
            flags = flags.binding(macro.upper(), repr(value))
    settings = _settings(part, flags)
    job = _job(options, settings, tuple(argv[cut + 1 :]))

    from adalink_jax import launching
    from adalink_jax.launching import budget, canary, record, submit, variables
    from adalink_jax.launching.job_templates import line

    jobs = [(job, settings)]
    if getattr(options, "canary", False):
        jobs.insert(0, canary.of(job, settings))
    staged = record.stage(job.flags)
    rendered = [getattr(launching, part).render(one, its, staged) for one, its in jobs]
    if note := variables.note(settings.env):
        print(note, file=sys.stderr)
    typed = line(["adalink", "launch", part, *argv])
    written = [record.write(one, part, its, files, staged, typed) for (one, its), files in zip(jobs, rendered)]
    if options.submit:
        chip_hours = None if options.no_plan else submit.check_plan(job, settings)
        for one, its in () if options.no_plan else jobs[:-1]:
            canary.check_plan(one, its)
        if not isinstance(settings, launching.Local | launching.Ray) and (
            sentence := budget.check(settings, chip_hours)
        ):
            print(sentence, flush=True)
        if len(jobs) > 1 and (status := canary.run(*jobs[0], rendered[0].submit, staged, job)):
            return status
        return submit.submit(job, settings, rendered[-1].submit, staged)
    for (one, _), files, names in zip(jobs, rendered, written):
        print(files.files[files.main])
        print(f"Written to {one.folder}: {', '.join(names)}")
    plans = [] if options.no_plan else [submit.plan_words(one) for one, _ in reversed(jobs)]
    commands = [command for command in (*plans, *(files.submit for files in rendered)) if command]
    last = ", the last one if the canary succeeds" if len(jobs) > 1 else ""
    print(f"With --submit, these commands run{last}:" if commands else "With --submit, these processes are started.")
    for command in commands:
        print(f"  {line(command)}")
    return 0


def _settings(part: str, flags: configuration.GinFlags) -> "launching.Settings":
    """The launcher's settings, by `gin/launch/PART.gin` and the flags."""
    from adalink_jax import launching

    configuration.load(flags, extra_files=(f"gin/launch/{part}.gin",))
    settings = getattr(launching, part.capitalize())()
    configuration.check_all_used(flags)
    return settings


def _job(options: argparse.Namespace, settings: "launching.Settings", arguments: tuple[str, ...]) -> "launching.Job":
    from adalink_jax.cli.main import COMMANDS
    from adalink_jax.configuration.gin_checks import nearest
    from adalink_jax.launching.job import Job, default_name
    from adalink_jax.launching.record import HOME
    from adalink_jax.parallel.accelerators import parse_topology

    commands = [name for name in COMMANDS if name != "launch"]
    if not arguments:
        raise UserError(
            "There is no command to run; give one after --, such as -- train --gin_file=gin/runs/quickstart.gin."
        )
    if arguments[0] not in commands:
        raise UserError(f"{arguments[0]!r} is not a command that can be launched{nearest(arguments[0], commands)}.")
    name = options.name or default_name(arguments)
    folder = options.folder or f"{HOME}/{name}"
    return Job(name, arguments, parse_topology(settings.topology), folder, getattr(options, "array", None))
