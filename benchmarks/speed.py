"""Speed, side by side with PyTorch, PEFT, transformers and t5x; its growth with rank, length, bank, depth and chips; and one GPU.

    python -m benchmarks.speed [--parts table quantised startup rank length bank depth chips gpu] [--out runs/speed] [--page docs/results/speed.md]

`table`: T5 1.1 small (77 M) in float32. All contenders of a row have the same weights and take turns, each in a process of its own; a matrix
product of the same process count takes turns too, and gives the limit of the row. `startup`: seconds by phase of `adalink` itself, on a warm compilation cache. The curves take a point after the other, in CPU seconds,
which other work on the machine hardly changes. `quantised`: our step and decoding with the frozen base in each dtype. `gpu` needs one, ten
minutes. Every row and point has a file in --out: a rerun resumes, and one that is deleted is measured anew. --page rewrites what stands between
the page's marks, from the files. A part that was not measured stays as it is on the page.
"""

import argparse
import dataclasses
import json
import pathlib
import statistics
from collections.abc import Iterator
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks.speed_parts import page
from benchmarks.speed_parts.work import MATMUL, QUANTISED, ROWS, SMALL, TINY, Model, Work
from benchmarks.speed_parts.worker import Contender

CURVES = ("rank", "length", "bank", "depth", "chips")
PARTS = ("table", "quantised", "startup", *CURVES, "gpu")
POINT_RUNS = 3


@dataclasses.dataclass
class Run:
    """One call of the script.

    Attributes:
      out: folder of the results.
      tiny: tiny sizes, to test the script.
      turns: of every row.
      rows: names of the table's rows to measure.
    """

    out: pathlib.Path
    tiny: bool
    turns: int
    rows: list[str]

    @property
    def model(self) -> Model:
        """Sizes of the measured model."""
        return TINY if self.tiny else SMALL

    def jobs(self, part: str) -> Iterator[tuple[str, Any]]:
        """The names of a part's files, and functions that measure their contents."""
        if part == "table":
            for work in ROWS:
                if work.name in self.rows:
                    yield work.name, lambda work=work: self.row(work.shrunk() if self.tiny else work)
        elif part == "quantised":
            for work in QUANTISED:
                yield work.name, lambda work=work: self.row(work.shrunk() if self.tiny else work)
        elif part == "startup":
            from benchmarks.speed_parts import startup

            for name in startup.COMMANDS if not self.tiny else ("help",):
                yield (
                    f"startup-{name}".replace(" ", "_"),
                    lambda name=name: startup.measure(name, self.out) | page.here(),
                )
        elif part == "gpu":
            from benchmarks.speed_parts import gpu

            if self.tiny or gpu.device():
                for name, model in gpu.MODELS.items():
                    for method in gpu.METHODS:
                        yield f"gpu-{name}-{method}".replace(" ", "_"), lambda *a, x=(name, model, method): self.gpu(*x)
        else:
            from benchmarks.speed_parts.growth import CURVES as curves

            for point in curves[part].tiny if self.tiny else curves[part].points:
                yield f"{part}-{point}", lambda point=point: self.point(part, point)

    def row(self, work: Work) -> dict[str, Any]:
        """Times all contenders of a row in turns."""
        base = self.out / "base"
        if not base.exists():
            from benchmarks.speed_parts.theirs import write_base

            write_base(self.model, base)
        task = {"work": dataclasses.asdict(work), "model": dataclasses.asdict(self.model), "base": str(base)}
        contenders, seconds, cpu, facts = {}, {}, {}, {}
        try:
            for name in (MATMUL, *work.contenders):
                try:
                    contenders[name] = Contender(contender=name, **task)
                except ModuleNotFoundError as e:
                    facts[name] = {"missing": str(e)}
            for _ in range(self.turns):
                for name, contender in contenders.items():
                    answer = contender.run()
                    cpu.setdefault(name, []).append(answer["cpu"])
                    seconds.setdefault(name, []).append(answer["seconds"])
                    facts[name] = contender.facts | {"peak": answer["peak"]}
        finally:
            for contender in contenders.values():
                contender.end()
        rate = facts[MATMUL]["flops"] / min(seconds[MATMUL])  # the machine's best of the same minutes
        return {
            "work": dataclasses.asdict(work),
            "seconds": seconds,
            "cpu": cpu,
            "facts": facts,
            "matmul_rate": rate,
            **page.here(),
        }

    def point(self, curve: str, point: int) -> dict[str, Any]:
        """One point of a curve: `seconds` (of the CPU, or planned for chips), and `bytes`."""
        from benchmarks.speed_parts import growth

        if curve == "chips":
            plan = growth.plan(point)
            return {
                "point": point,
                "seconds": plan["estimated_step_seconds"],
                "bytes": plan["hbm_bytes"],
                "plan": plan,
                **page.here(),
            }
        contender = Contender(curve=curve, point=point, model=dataclasses.asdict(self.model))
        try:
            answers = [contender.run() for _ in range(POINT_RUNS)]
        finally:
            contender.end()
        return {
            "point": point,
            "seconds": statistics.median(answer["cpu"] for answer in answers),
            "wall": statistics.median(answer["seconds"] for answer in answers),
            "bytes": contender.facts["temporaries"],
            **page.here(),
        }

    def gpu(self, name: str, model: Model, method: str) -> dict[str, Any]:
        """One model and method on the GPU."""
        most, dtype = (2, "float32") if self.tiny else (256 if model.emb_dim < 2048 else 128, "bfloat16")
        model = self.model if self.tiny else model
        try:
            contender = Contender(gpu=name, method=method, most=most, dtype=dtype, model=dataclasses.asdict(model))
        except ModuleNotFoundError as e:
            return {"model": name, "method": method, "missing": str(e), **page.here()}
        contender.end()
        from benchmarks.speed_parts import gpu

        return contender.facts | {"device": gpu.device(), **page.here()}


def main() -> None:
    """Measures what has no file yet, and rewrites the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=PARTS, help="what to measure (all)")
    parser.add_argument("--rows", nargs="*", default=[work.name for work in ROWS], help="rows of the table (all)")
    parser.add_argument("--turns", type=int, default=5, help="runs of every contender, after two that do not count (5)")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/speed"))
    parser.add_argument("--page", type=pathlib.Path, help="the page to rewrite, such as docs/results/speed.md")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, to test this script, in --out/tiny")
    options = parser.parse_args()
    run = Run(options.out / "tiny" if options.tiny else options.out, options.tiny, options.turns, options.rows)
    run.out.mkdir(parents=True, exist_ok=True)
    jobs = [(name, measure) for part in options.parts for name, measure in run.jobs(part)]
    text = TextColumn
    columns = (
        text("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        text("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as progress:
        bar = progress.add_task("speed", total=len(jobs))
        for name, measure in jobs:
            progress.update(bar, description=name)
            file = run.out / f"{name}.json"
            if not file.exists():
                partial = file.with_suffix(".partial")
                partial.write_text(json.dumps(measure(), indent=1) + "\n", encoding="utf-8")
                partial.rename(file)
            progress.advance(bar)
    print(page.text(run.out))
    if options.page:
        page.rewrite(options.page, run.out)


if __name__ == "__main__":
    main()
