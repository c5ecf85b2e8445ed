"""A run's output: tables, a progress bar with the time left, and plain lines where there is no terminal."""

import contextlib
import shlex
import time
from collections.abc import Callable, Iterator, Sequence

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from adalink_jax import configuration, parallel, terminal
from adalink_jax.data import Task
from adalink_jax.terminal import LINE_EVERY_SECONDS
from adalink_jax.training import parameter_tables, verdict
from adalink_jax.training.evaluation import Result, printable
from adalink_jax.training.run_checkpoints import RunCheckpoints
from adalink_jax.training.setup import Parameters

_SHOWN: list[dict[str, int]] = []  # the backbones whose tables this process has printed
OnMetrics = Callable[[int, dict, float], None]  # step, its metrics, examples per second


@contextlib.contextmanager
def reading_rows() -> Iterator[Callable[[int], None]]:
    """Shows the number of rows read if reading takes long; yields the function to call with the number of new rows."""
    out = terminal.console(stderr=True, quiet=not parallel.is_first())
    status, done, printed = terminal.status(out), 0, time.monotonic()

    def advance(count: int) -> None:
        nonlocal done, printed
        done += count
        if time.monotonic() - printed < (1 if out.is_terminal else LINE_EVERY_SECONDS):
            return
        printed, text = time.monotonic(), f"reading and checking the data: {done:,} rows"
        if out.is_terminal:
            status.update(Text(text))
            status.start()
        else:
            out.print(text)

    try:
        yield advance
    finally:
        status.stop()


class Console(contextlib.AbstractContextManager["Console"]):
    """A context; its exit ends the progress bar. Only process 0 prints.

    Args:
      model_dir: the run's folder, as it is shown.
    """

    def __init__(self, model_dir: str):
        self._model_dir = model_dir
        self._out = terminal.console(quiet=not parallel.is_first())
        self._bar = Progress(
            terminal.text_column("training"), BarColumn(), MofNCompleteColumn(),
            terminal.text_column("loss {task.fields[loss]:.4f}"),
            terminal.text_column("{task.fields[rate]:,.0f} examples/s"), TimeElapsedColumn(), terminal.text_column("left"),
            TimeRemainingColumn(elapsed_when_finished=False), console=self._out, transient=False,
        )  # fmt: skip

    def __exit__(self, *_) -> None:
        self._bar.stop()

    def parameters(self, params: Parameters) -> None:
        """The table of trainable and frozen parameters, and where their values come from; where this process has shown that of the same
        backbone, as a command of many runs has, only their counts."""
        backbone = {
            name: leaf.size for name, leaf in {**params.trainable, **params.frozen}.items() if "backbone/" in name
        }
        if backbone in _SHOWN:
            self._out.print(parameter_tables.counts(params.trainable, params.frozen))
            return
        _SHOWN.append(backbone)
        self._out.print(parameter_tables.parameter_table(params.trainable, params.frozen, params.sources))
        if params.base is not None and params.base.fingerprint is not None:
            self._out.print(f"base: {params.base.name}, fingerprint {params.base.fingerprint[:12]}")

    def notes(self, tasks: Sequence[Task]) -> None:
        """Notes on the data, before the run starts."""
        for task in tasks:
            for line in task.notes:
                self._out.print(f"{task.name}, {line}", soft_wrap=True)

    def members(self, names: Sequence[str]) -> None:
        """The members of a pack."""
        self._out.print(f"{len(names)} members: {', '.join(names)}", soft_wrap=True)

    def members_finished(self, summary: dict) -> None:
        """A pack's members and their scores."""
        self._bar.stop()
        rows, metric = summary["members"], summary["metric"]
        tested = f"adapted_{metric}" in rows[0]
        headings = ("trained", "best step", "validation", *(("test",) if tested else ()))
        columns = ("member", *(Column(heading, justify="right") for heading in headings))
        table = Table(*columns, title=f"{summary['task']}: {metric} of each member's best step", title_justify="left")
        for row in rows:
            name = row["name"] + (" (diverged)" if row["diverged"] else "")
            cells = [name, f"{row['trainable']:,}", str(row["step"]), f"{row['validation']:.4f}"]
            table.add_row(*cells, *((f"{row[f'adapted_{metric}']:.4f}",) if tested else ()))
        self._out.print(table)
        if warning := next((row["nothing_learned"] for row in rows if row.get("nothing_learned")), None):
            count = sum(bool(row.get("nothing_learned")) for row in rows)
            self.warning(f"{count} of {len(rows)} members, for one: {warning}")
        self._out.print(
            f"{summary['steps']} steps, {summary['seconds']:.0f} s; each member's adapter and metrics are in "
            f"{self._model_dir}/members",
            soft_wrap=True,
        )

    def resumed(self, step: int, saved: RunCheckpoints) -> None:
        """The run resumes, perhaps from an older checkpoint than the newest."""
        for bad, why in saved.damaged.items():
            self.warning(
                f"The checkpoint {saved.folder / str(bad)} cannot be used ({why}); it is skipped, and replaced at step {bad}."
            )
        self._out.print(f"Resuming from step {step} in {self._model_dir}.", soft_wrap=True)

    def note(self, text: str) -> None:
        """One line."""
        self._out.print(configuration.as_named(text), soft_wrap=True)

    def warning(self, text: str) -> None:
        """One line that stands out."""
        self._out.print(configuration.as_named(text), style="bold red", soft_wrap=True)

    def goodput(self, shares: dict[str, float]) -> None:
        """The share of the run's time that its steps needed."""
        self.note(
            f"goodput {shares['goodput']:.0%} of {shares['wall_seconds']:.0f} s with {shares['restarts']} restarts; evaluations "
            f"{shares['evaluation_seconds']:.1f} s, checkpoints {shares['checkpoint_seconds']:.1f} s"
        )

    def already_done(self, summary: dict) -> None:
        """The run was finished before."""
        self._out.print(
            f"The run in {self._model_dir} is already finished, at step {summary.get('steps')}; delete the folder, or set another "
            f"{configuration.as_named('MODEL_DIR')}, to run it again.",
            soft_wrap=True,
        )
        if summary.get("members"):
            self.members_finished(summary)
        else:
            self._out.print_json(
                data={key: x for key, x in summary.items() if key not in ("scores", "settings", "versions", "segments")}
            )

    def working(self, what: str) -> contextlib.AbstractContextManager:
        """Shows what takes a moment."""
        shown = self._out.is_terminal and not self._bar.live.is_started
        return terminal.status(self._out, what) if shown else contextlib.nullcontext()

    @contextlib.contextmanager
    def counting(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """A bar with the time left, or a line now and then; yields the function to call with the number of newly done items."""
        if self._out.is_terminal and not self._bar.live.is_started:
            columns = (terminal.title_column(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                       terminal.text_column("left"), TimeRemainingColumn())  # fmt: skip
            with Progress(*columns, console=self._out, transient=True) as bar:
                task = bar.add_task(what, total=total)
                yield lambda n: bar.advance(task, n)
            return
        done, printed = 0, time.monotonic()
        started = printed

        def advance(n: int) -> None:
            nonlocal done, printed
            done += n
            if time.monotonic() - printed > LINE_EVERY_SECONDS or done == total:
                printed = time.monotonic()
                left = (printed - started) / done * (total - done)
                self._out.print(f"{what}: {done:,}/{total:,}  {left:.0f} s left")

        yield advance

    def scores(self, step: int, split: str, scores: dict[str, float]) -> None:
        """One line of scores."""
        shown = "  ".join(f"{name} {value:.4f}" for name, value in scores.items())
        self._out.print(f"step {step:>6}  {split}: {shown}")

    def baselines(self, scores: dict[str, dict[str, float]]) -> None:
        """A line for each method without a model."""
        for name, of_metrics in scores.items():
            shown = "  ".join(f"{metric} {value:.4f}" for metric, value in of_metrics.items())
            self._out.print(f"without a model  test: {shown}  ({name})", soft_wrap=True)

    def progress(self, first: int, total: int, also: OnMetrics) -> OnMetrics:
        """A callback for each step's metrics that draws the bar, or prints a line now and then, and then calls `also`."""
        bar = self._bar.add_task("training", total=total, completed=first, loss=float("nan"), rate=0.0)
        printed = started = time.monotonic()

        def show(step: int, metrics: dict, rate: float) -> None:
            nonlocal printed, started
            if self._out.is_terminal:
                self._bar.start()
                self._bar.update(bar, completed=step, loss=metrics["loss"], rate=rate)
            elif step == first + 1:  # its time is mostly compilation
                printed = started = time.monotonic()
                self._out.print(f"step {step}/{total}  loss {metrics['loss']:.4f}")
            elif time.monotonic() - printed > LINE_EVERY_SECONDS or step == total:
                printed = time.monotonic()
                left = (printed - started) / (step - first - 1) * (total - step)
                self._out.print(
                    f"step {step}/{total}  loss {metrics['loss']:.4f}  {rate:,.0f} examples/s  {left:.0f} s left"
                )
            also(step, metrics, rate)

        return show

    def finished(
        self, summary: dict, before: Result | None, after: Result | None, written: list[tuple[str, str]]
    ) -> None:
        """Predictions and scores (if there is a metric); the files that were `written`, if there are any, and what to type next."""
        self._bar.stop()
        if before is not None and after is not None:
            self._predictions(before, after)
        for name, value in verdict.frozen_and_adapted(summary).items():
            self._out.print(Text.assemble((name, "bold"), " on test: ", (f"{value:.4f}", "bold")))
        for name, scores in summary.get("baselines", {}).items():
            if summary["metric"] in scores:
                self._out.print(f"{name} on test: {scores[summary['metric']]:.4f}")
        if summary.get("nothing_learned"):
            self.warning(summary["nothing_learned"])
        if summary.get("learned_by_heart"):
            self.note(summary["learned_by_heart"])
        written_step = (
            f"best step {summary['step']} of {summary['steps']}" if after else f"step {summary['step']}, the last"
        )
        self._out.print(
            f"{summary['trainable']:,} trained, {summary['frozen']:,} frozen parameters; {written_step}; {summary['seconds']:.0f} s"
        )
        if summary["input_wait"] is not None:
            self._out.print(f"{summary['input_wait']:.1%} of the steps' time was spent waiting for data (input_wait)")
        if not written:
            return
        files = Table(title=f"Written to {self._model_dir}", title_justify="left", show_header=False, box=None)
        for row in written:
            files.add_row(*row)
        self._out.print(files)
        config = f"--gin_file={self._model_dir}/config.gin{configuration.consent_option()}"
        self._out.print("\nTo try next:", style="bold")
        commands = [f"adalink params {config}"]
        if any(name == "tensorboard/" for name, _ in written):
            commands.insert(0, f"tensorboard --logdir {self._model_dir}/tensorboard")
        if any(name == "adapter/" for name, _ in written):
            run = f"--run {shlex.quote(self._model_dir)}{configuration.consent_option()}"
            trusted = ", trust_modules=True" if configuration.consent_option() else ""
            commands = [
                f"adalink infer task:test predictions.jsonl {run}  # or new.csv, a folder of images, ...",
                f"adalink_jax.Predictor({self._model_dir!r}{trusted})  # in Python",
                f"""adalink eval {config} --gin.INITIAL_ADAPTER_PATH="'{self._model_dir}/adapter'" """.strip(),
                *commands,
            ]
        for command in commands:
            self._out.print(f"  {command}", soft_wrap=True)

    def _predictions(self, before: Result, after: Result) -> None:
        """A table of inputs, targets and the predictions before and after."""
        table = Table("input", "target", "before", "after", title="Predictions on test", title_justify="left")
        for old, new in list(zip(before.samples, after.samples))[:8]:
            style = "green" if new["prediction"] == new["target"] else "red"
            cells = (new["inputs"], new["target"], old["prediction"])
            table.add_row(*map(Text, map(printable, cells)), Text(printable(new["prediction"]), style))
        self._out.print(table)
