"""Payloads that make a file PWN where a shell takes them for more than text, and `ran`, which runs what a launcher makes of a job.

The programs of the clusters are fakes: they record their arguments, and run what a remote shell would run. `ran` belongs to
tests/test_launch_injection.py and to `make fuzz`.
"""

import dataclasses
import os
import pathlib
import re
import subprocess
from collections.abc import Sequence

import yaml

from adalink_jax import launching
from adalink_jax.launching.job import Job

PAYLOADS = (
    # expansions, also inside double quotes and heredocs
    "$(touch PWN)", "`touch PWN`", "a$(touch PWN)b", "${x:-$(touch PWN)}", "$((x[$(touch PWN)]))", "\\$(touch PWN)", "\\\\$(touch PWN)",
    "runs/$(touch PWN)/x", "{touch,PWN}", "`{touch,PWN}`", "$(touch${IFS}PWN)", "<(touch PWN)", "$(>PWN)",
    # ends of commands, words, quotes and comments
    ";touch PWN", "; touch PWN;", "&& touch PWN", "|| touch PWN", "| touch PWN", "& touch PWN", "\ntouch PWN", "\ntouch PWN\n",
    "x\r\ntouch PWN", "x\rtouch PWN", "x\u2028touch PWN", "x\u2029touch PWN", "x\x85touch PWN", "x\x0btouch PWN", "x\ttouch PWN",
    "';touch PWN;'", '";touch PWN;"', "'\"';touch PWN;'\"'", "' $(touch PWN) '", '" $(touch PWN) "', "\\';touch PWN;\\'", "\\\ntouch PWN",
    "#\ntouch PWN", "EOF\ntouch PWN", ")\ntouch PWN", "}; touch PWN; {", "$'\\ntouch PWN'", "\x1b[2Jx\ntouch PWN", "\\",
    # redirections, options, globs, history, patterns of names, variables of Kubernetes
    ">PWN", "x >PWN", "2>PWN", "-x", "--command=touch PWN", "-oProxyCommand=touch PWN", "*", "?", "[a-z]*", "~", "~root", "!!", "!touch PWN", "#",
    "%j", "%s%n", "$HOME", "$(HOME)", "$$(HOME)", "$$", "$", "a b", " a", "a ", "", "host:$(touch PWN)", "é\u00a0\U0001f600\U000e0001",
)  # fmt: skip

_RECORD = """#!/bin/bash
printf '%s\\0' "$#" "${0##*/}" "$@" >>"$FAKE_CALLS"
"""
# gcloud: a command goes through the shell of the host; so does a path on it, as with the old protocol of scp.
_BODIES = {
    "gcloud": r"""
case $4 in
  describe | list) [ "$4" = list ] || echo ACTIVE ;;
  ssh | scp) verb=$4 paths=() ;;
  *) exit 0 ;;
esac
for word in "${@:5}"; do
  case $word in
    --command=*) (cd "$FAKE_HOST" && exec bash -c "${word#--command=}") || exit ;;
    -*) ;;
    *) [[ $word != *:* || ${word%%:*} == */* ]] || word=$FAKE_HOST/$(cd "$FAKE_HOST" && bash -c "printf %s ${word#*:}")
      paths+=("$word") ;;
  esac
done
[ "$verb" != scp ] || cp -r -- "${paths[@]}" 2>/dev/null || true
""",
    "sbatch": 'SLURM_JOB_ID=1 bash "${@: -1}"',
    "srun": 'while [[ $1 == --* ]]; do shift; done; "$@"',
    "adalink": """[ -z "${PAYLOAD+x}" ] || printf '%s\\0' 1 environment "$PAYLOAD" >>"$FAKE_CALLS\"""",
    "curl": "echo 0",
    "squeue": "echo 1 RUNNING",
}
_PROGRAMS = (*_BODIES, "kubectl", "module", "python3", "sacct", "scancel", "scontrol", "sleep")


@dataclasses.dataclass(frozen=True)
class Ran:
    """What happened.

    Attributes:
      status: exit status of the command that submits the job.
      errors: its standard error.
      calls: each program and its arguments, in order; `#SBATCH` with the options of a batch script; and `adalink` as a pod calls it.
      pwned: whether a payload ran.
    """

    status: int
    errors: str
    calls: list[list[str]]
    pwned: bool

    def arguments(self, program: str) -> list[list[str]]:
        """The arguments of each call of a program."""
        return [words[1:] for words in self.calls if words[0] == program]


def ran(folder: pathlib.Path, job: Job, settings: launching.Settings, staged: dict[str, str] | None = None) -> Ran:
    """Renders a job, writes its files into `folder`, and submits it there to the fakes.

    Args:
      folder: an existing folder; files that earlier calls left there are used again.
      job: the job.
      settings: of its launcher.
      staged: path -> text of the job's own files.

    Raises:
      UserError: if the launcher refuses the job.
    """
    rendered = getattr(launching, type(settings).__name__.lower()).render(job, settings, staged or {})
    files = rendered.files | {os.path.join("files", name): text for name, text in (staged or {}).items()}
    for name, text in files.items():
        (folder / job.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / job.folder / name).write_text(text)
    main = folder / job.folder / rendered.main
    return submitted(folder, rendered.submit or ["bash", str(main)], main)


def submitted(folder: pathlib.Path, command: Sequence[str], main: pathlib.Path) -> Ran:
    """Runs the command that submits a job, whose main file is `main`, in `folder` and with the fakes."""
    environment = with_fakes(folder)
    done = subprocess.run(
        command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=20
    )
    recorded = [*_calls(folder / "calls"), *_read(main.read_text(encoding="utf-8"), main.name)]
    return Ran(done.returncode, done.stderr.decode(errors="replace"), recorded, pwned(folder))


def with_fakes(folder: pathlib.Path) -> dict[str, str]:
    """Puts the fakes into `folder`, with no calls yet; returns the environment in which they are found first."""
    fakes, host, calls = folder / "fakes", folder / "host", folder / "calls"
    if not fakes.exists():
        fakes.mkdir()
        for name in _PROGRAMS:
            (fakes / name).write_text(_RECORD + _BODIES.get(name, ""))
            (fakes / name).chmod(0o755)
    host.mkdir(exist_ok=True)
    calls.write_bytes(b"")
    path = f"{fakes}:{os.environ['PATH']}"
    return {"PATH": path, "HOME": str(folder), "FAKE_CALLS": str(calls), "FAKE_HOST": str(host)}


def pwned(folder: pathlib.Path) -> bool:
    """Whether a payload ran."""
    return any(path.name == "PWN" for path in folder.rglob("*PWN*"))


def _calls(path: pathlib.Path) -> list[list[str]]:
    words, out = path.read_bytes().decode().split("\0")[:-1], []
    while words:
        count = int(words[0]) + 2
        out.append(words[1:count])
        words = words[count:]
    return out


def _read(text: str, name: str) -> list[list[str]]:
    """The calls that a cluster makes by itself, as it reads a file."""
    if name.endswith(".sbatch"):
        header = re.match(r"(#.*\n)*", text)
        assert header
        return [["#SBATCH", *re.findall(r"^#SBATCH (.*)$", header[0], re.MULTILINE)]]
    if name.endswith(".yaml"):
        *_, jobset = yaml.safe_load_all(text)
        pod = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
        # Kubernetes takes $$ for $, and $(NAME) for a variable; an unknown one stays.
        seen = lambda words: [re.sub(r"\$\$", "$", word) for word in words]
        container = pod["containers"][0]
        variables = [variable["value"] for variable in container.get("env", ()) if variable["name"] == "PAYLOAD"]
        return [seen(container["command"]), *(["environment", *seen([value])] for value in variables)]
    return []
