"""No value of a job is run by a shell: what is not refused arrives unchanged. The payloads and the fakes are in shell_payloads.py."""

import dataclasses
import itertools
import pathlib
import re

import jinja2
import pytest
from launch_cases import PROJECT, TRAIN, topology
from shell_payloads import PAYLOADS, ran

from adalink_jax import launching
from adalink_jax.cli.main import main
from adalink_jax.errors import UserError
from adalink_jax.launching import alphabets, job_templates, variables
from adalink_jax.launching.job import Job
from adalink_jax.parallel.accelerators import parse_topology

ROOT = pathlib.Path(__file__).parent.parent
TEMPLATES = sorted((ROOT / "launch").glob("*.jinja"))

# Launcher -> settings that must be set.
SETTINGS = {
    "local": launching.Local(),
    "ray": launching.Ray("cpu:1"),
    "slurm": launching.Slurm("cpu:1"),
    "tpu": launching.Tpu("v5e:1x1", "p", "z", "w.whl"),
    "gke": launching.Gke("v6e:1x1", "c", "i"),
}
PER_HOST = dataclasses.replace(SETTINGS["tpu"], per_host=True)


def job(settings, *arguments: str, **fields) -> Job:
    return Job(**{
        "name": "j", "arguments": arguments or ("params",), "topology": parse_topology(settings.topology), "folder": "job",
    } | fields)  # fmt: skip


# --- templates cannot forget to quote ---

# Neither our filters nor calls, nor blocks whose output is not a value: all of these could write a text that is not quoted.
NODES = {
    "Add", "And", "Assign", "AssignBlock", "Call", "Compare", "Concat", "CondExpr", "Const", "Filter", "For", "Getattr", "If", "Name",
    "Not", "Operand", "Or", "Output", "Sub", "Template", "TemplateData", "Test", "Tuple",
}  # fmt: skip


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_a_template_cannot_write_what_is_not_quoted(path):
    tree = jinja2.Environment().parse(path.read_text())
    assert {type(node).__name__ for node in tree.find_all(jinja2.nodes.Node)} <= NODES
    assert {node.name for node in tree.find_all(jinja2.nodes.Filter)} <= {"join"}
    called = {
        node.node.attr for node in tree.find_all(jinja2.nodes.Call) if isinstance(node.node, jinja2.nodes.Getattr)
    }
    assert called <= {"items"} and len(list(tree.find_all(jinja2.nodes.Call))) <= 2
    for text in path.read_text().splitlines():
        if "{{" in text and not text.startswith("#"):
            parts = re.sub(r"{%.*?%}", "", text).split("{{")
            outside = itertools.accumulate((part.partition("}}")[2] if n else part) for n, part in enumerate(parts))
            within = [before for before in list(outside)[:-1] if before.count('"') % 2 or before.count("'") % 2]
            assert not within, f"a value within quotes: {text}"


def test_only_shell_lines_and_options_of_sbatch_are_not_quoted():
    made = {
        (path.name, found)
        for path in (ROOT / "adalink_jax").rglob("*.py")
        for found in re.findall(
            r"\bShell\(\w+\) for \w+ in [\w.]+|\bShell\b(?!\(\w+\) for|\(str\)|\):)", path.read_text()
        )
    }
    assert {item for item in made if item[0] != "job_templates.py"} == {
        ("slurm.py", "Shell(command) for command in settings.setup"),
        ("slurm.py", "Shell(option) for option in settings.sbatch"),
        ("tpu.py", "Shell(command) for command in settings.setup"),
    }


def test_a_value_that_is_no_word_is_an_error():
    template = job_templates.environment("x.sh.jinja").from_string("{{ value }}")
    for value in (None, True, 1.5, {"a": 1}):
        with pytest.raises(TypeError, match="must be a text or a whole number"):
            template.render(value=value)
    for name in ("x.sh.jinja", "x.yaml.jinja"):
        with pytest.raises(jinja2.UndefinedError):
            job_templates.environment(name).from_string("{{ value }}").render()
    assert template.render(value=["a b", "c"]) == "'a b' c" and template.render(value=3) == "3"
    nested = "{% set command %}echo {{ value }}{% endset %}ssh {{ command }}"
    assert job_templates.environment("x.sh.jinja").from_string(nested).render(value="a b") == """ssh "echo 'a b'\""""


def test_quotes_only_where_they_are_needed():
    assert job_templates.line(["a/b-c=d,e:1", "x='y'", "it is", "$x", "a\nb'"]) == (
        """a/b-c=d,e:1 "x='y'" 'it is' '$x' $'a\\nb\\''"""
    )
    assert all(job_templates.quote(payload).isprintable() for payload in PAYLOADS)


# --- nothing runs, and what is not refused arrives unchanged ---


@pytest.mark.parametrize("settings", [*SETTINGS.values(), PER_HOST], ids=[*SETTINGS, "tpu_per_host"])
def test_arguments_arrive_unchanged(tmp_path, settings):
    words = ("params", "--gin.MODEL_DIR='gs://b/x'", *PAYLOADS)
    found = ran(tmp_path, job(settings, *words), settings)
    assert found.arguments("adalink") == [list(words)], found.errors
    assert not found.pwned and found.status == 0


@pytest.mark.parametrize("settings", [*SETTINGS.values(), PER_HOST], ids=[*SETTINGS, "tpu_per_host"])
def test_variables_arrive_unchanged(tmp_path, settings):
    text = "".join(PAYLOADS)
    settings = dataclasses.replace(settings, env={"EMPTY": "", "PAYLOAD": text})
    found = ran(tmp_path, job(settings), settings)
    assert found.arguments("environment") == [[text]], found.errors
    assert found.arguments("adalink") == [["params"]] and not found.pwned and found.status == 0


@pytest.mark.parametrize("launcher", ["local", "ray", "slurm"])
def test_secrets_are_named_and_read_where_the_job_runs(tmp_path, launcher):
    text = "".join(text for text in PAYLOADS if not text.endswith("\n")) + "."
    (tmp_path / "kept").write_text(f"{text}\n")
    settings = dataclasses.replace(SETTINGS[launcher], secrets={"PAYLOAD": str(tmp_path / "kept")})
    found = ran(tmp_path, job(settings), settings)
    assert found.arguments("environment") == [[text]] and not found.pwned
    assert variables.read_secrets(settings.secrets) == {"PAYLOAD": text}
    assert not [path for path in (tmp_path / "job").rglob("*") if path.is_file() and text in path.read_text()]
    with pytest.raises(UserError, match="A is in both ENV and SECRETS"):
        dataclasses.replace(settings, env={"A": "x"}, secrets={"A": "/kept"})
    with pytest.raises(UserError, match="^SECRETS "):
        dataclasses.replace(settings, secrets={"A": "$(touch PWN)"})


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_names_of_variables_are_checked(settings):
    for name in (*PAYLOADS, "1A", "é", "A-B"):
        with pytest.raises(UserError, match="(?s)^ENV .*a variable's name"):
            dataclasses.replace(settings, env={name: "x"})
    with pytest.raises(UserError, match="^ENV "):
        dataclasses.replace(settings, env={"A": 1})
    for name in variables.RESERVED[type(settings).__name__.lower()]:
        with pytest.raises(UserError, match=f"^ENV sets {name}, which"):
            dataclasses.replace(settings, env={name: "x"})


def test_settings_of_slurm_arrive_unchanged(tmp_path):
    image = "".join(PAYLOADS)
    settings = dataclasses.replace(
        SETTINGS["slurm"], container_image=image, container_mounts=PAYLOADS, account="a", sbatch=("--comment=$(touch PWN)",)
    )  # fmt: skip
    found = ran(tmp_path, job(settings), settings)
    (words,) = found.arguments("srun")
    assert f"--container-image={image}" in words and f"--container-mounts={','.join(PAYLOADS)}" in words
    (header,) = found.arguments("#SBATCH")
    assert "--account=a" in header and header[-1] == "--comment=$(touch PWN)"
    assert not found.pwned and found.arguments("adalink") == [["params"]]


def test_settings_of_a_tpu_arrive_unchanged(tmp_path):
    flags = tuple(f"--note={text}" for text in PAYLOADS if text.isprintable())
    settings = dataclasses.replace(SETTINGS["tpu"], create_flags=flags)
    found = ran(tmp_path, job(settings), settings)
    (created,) = [words for words in found.arguments("gcloud") if words[3] == "create"]
    assert tuple(created[-len(flags) :]) == flags and found.arguments("adalink") == [["params"]]
    settings = dataclasses.replace(SETTINGS["tpu"], ssh_flags=flags)
    found = ran(tmp_path, job(settings), settings)
    sent = [words for words in found.arguments("gcloud") if words[3] == "ssh"]
    assert len(sent) == 4 and all(tuple(words[7 : 7 + len(flags)]) == flags for words in sent)
    assert not found.pwned
    for name in (
        "create_flags",
        "ssh_flags",
    ):  # gcloud takes a word with a colon for a path on the host, whose shell reads it
        with pytest.raises(UserError, match=f"{name.upper()} .*it must be an option"):
            dataclasses.replace(SETTINGS["tpu"], **{name: ("gs://$(touch PWN)",)})


def test_files_of_gke_arrive_unchanged(tmp_path):
    settings = SETTINGS["gke"]
    staged = {f"{number}_{text}".replace("/", "_"): text for number, text in enumerate(PAYLOADS)}
    rendered = launching.gke.render(job(settings), settings, staged)
    import yaml

    held, jobset = yaml.safe_load_all(rendered.files["jobset.yaml"])
    pod = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert {item["path"]: held["data"][item["key"]] for item in pod["volumes"][0]["configMap"]["items"]} == staged


def test_a_model_dir_is_copied_to_the_host_and_back(tmp_path):
    settings = SETTINGS["tpu"]
    (tmp_path / "runs" / "x+1").mkdir(parents=True)
    found = ran(tmp_path, job(settings, "pack", "--gin.MODEL_DIR='runs/x+1'"), settings, {"mine.gin": "x = 1\n"})
    assert found.status == 0 and (tmp_path / "host" / "adalink" / "j" / "runs" / "x+1").is_dir(), found.errors
    assert (tmp_path / "host" / "adalink" / "j" / "mine.gin").read_text() == "x = 1\n"


QUOTED = {
    ("slurm", "container_image"), ("slurm", "container_mounts"), ("tpu", "create_flags"), ("tpu", "ssh_flags"),
    ("slurm", "setup"), ("tpu", "setup"), ("gke", "setup"), ("slurm", "sbatch"), ("local", "setup"), ("ray", "setup"),
}  # fmt: skip
REFUSED = [
    (launcher, field.name)
    for launcher, settings in SETTINGS.items()
    for field in dataclasses.fields(settings)
    if (launcher, field.name) not in QUOTED and field.name != "topology"
]


def test_names_and_paths_outside_their_alphabets_are_refused():
    for (launcher, name), payload in itertools.product(REFUSED, PAYLOADS):
        value = (payload,) if isinstance(getattr(SETTINGS[launcher], name), tuple) else payload
        with pytest.raises(UserError, match=f"^{name.upper()} .*it must be") as refused:
            dataclasses.replace(SETTINGS[launcher], **{name: value})
        assert str(refused.value).split("\n")[0].isprintable()


def test_names_folders_and_paths_outside_their_alphabets_are_refused():
    settings = SETTINGS["tpu"]
    for payload in PAYLOADS:
        for fields in ({"name": payload}, {"folder": payload}, {"folder": f"runs/{payload}"}):
            if fields != {"folder": "runs/"}:
                with pytest.raises(UserError, match="^--"):
                    job(settings, **fields)
        with pytest.raises(UserError):
            parse_topology(f"h100:8{payload or '٣'}")
        for folder in (payload, f"runs/{payload}/x", f"runs/x{payload}"):
            if folder not in ("runs//x", "runs/x", "runs/x-x"):
                with pytest.raises(UserError, match="^MODEL_DIR"):
                    launching.tpu.render(job(settings, "pack", f"--gin.MODEL_DIR={folder!r}"), settings, {})
        if payload not in ("", "-x"):
            with pytest.raises(UserError, match="^The path of a file|under the current folder"):
                launching.tpu.render(job(settings), settings, {f"x{payload}": ""})
    with pytest.raises(UserError, match="without NUL"):
        job(settings, "params", "\udcff")


def test_options_of_sbatch_stay_in_their_line():
    for payload in PAYLOADS:
        if payload.startswith("-") and len(payload) > 1:
            continue
        with pytest.raises(UserError, match="one line that begins with -"):
            dataclasses.replace(SETTINGS["slurm"], sbatch=(payload,))
    for end in ("\n", "\r", "\x0b", "\x85", "\u2028", "\0"):
        with pytest.raises(UserError, match="one line that begins with -"):
            dataclasses.replace(SETTINGS["slurm"], sbatch=(f"--mem=0{end}touch PWN",))


@pytest.mark.parametrize("payload", ["$(touch PWN)", "a';touch PWN;'", '";touch PWN;"', "\ntouch PWN\n", "x >PWN"])
def test_templates_do_not_rely_on_the_alphabets(tmp_path, monkeypatch, payload):
    monkeypatch.setattr(alphabets.Alphabet, "__call__", lambda self, text: text)
    every = dict.fromkeys(("account", "partition", "qos", "time", "container_image"), payload)
    settings = dataclasses.replace(SETTINGS["slurm"], modules=(payload,), **every)
    found = ran(tmp_path, job(settings, name=payload), settings)
    assert (
        not found.pwned
        and found.arguments("adalink") == [["params"]]
        and found.arguments("module") == [["load", payload]]
    )
    every = dict.fromkeys(("project", "zone", "wheel", "constraints", "runtime_version", "tpu"), payload)
    for tpu in (None, payload):
        settings = dataclasses.replace(SETTINGS["tpu"], **every | {"tpu": tpu})
        found = ran(tmp_path, job(settings), settings, {payload.replace("/", "_"): ""})
        assert not found.pwned and f"--zone={payload}" in found.arguments("gcloud")[0]


# --- the commands that were reported ---


@pytest.mark.parametrize("options", [
    ["tpu", topology("v5e:2x2"), *PROJECT, "--name", "j", "--", "train", "--gin.MODEL_DIR='runs/$(touch PWN)/x'"],
    ["tpu", topology("v5e:4x4"), *PROJECT, "--tpu", "t\ntouch PWN", "--", *TRAIN],
    ["slurm", topology("h100:8"), "--folder", "j`{touch,PWN}`", "--", *TRAIN],
    ["slurm", topology("h100:8"), "--name", "j\ntouch PWN", "--", *TRAIN],
    ["slurm", topology("h100:8"), "--gin.PARTITION='gpu\\n#SBATCH --wrap=x'", "--", *TRAIN],
])  # fmt: skip
def test_a_command_with_such_a_value_is_refused(place, capsys, options):
    assert main(["launch", *options]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "it must be" in err, err
    assert not (place / "runs").exists()


# --- no proxy stands between processes of one machine ---


def test_local_processes_find_each_other_without_a_proxy():
    assert launching.local.no_proxy({}) == {"no_grpc_proxy": "localhost"}
    assert launching.local.no_proxy({"no_proxy": "a,.b"}) == {"no_grpc_proxy": "a,.b,localhost"}
    assert launching.local.no_proxy({"no_proxy": "a", "no_grpc_proxy": "c"}) == {"no_grpc_proxy": "c,localhost"}
