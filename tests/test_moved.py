"""Old names of modules that moved: imports, gin selectors and gin's import statements still work."""

import importlib
import os
import pathlib
import subprocess
import sys
import warnings

import pytest
from gin import config as gin_config

from adalink_jax import configuration, moved
from adalink_jax.cli.arguments import register
from adalink_jax.configuration import moved_selectors
from adalink_jax.errors import UserError

OLD_CONFIGS = pathlib.Path(__file__).parent / "data" / "old_configs"
# Every configurable of version 0.1.0, with its module of that version.
OLD_SELECTORS = """
    adapters.adalink.AdaLinkAdapter adapters.adapted.AdaptedModel adapters.chain.Chain adapters.lora.LoRA
    adapters.norm_tuning.NormTuning adapters.position_offsets.PositionOffsets adapters.prompt_tuning.PromptTuning
    data.files.task.FileTask data.published.settings.PublishedData data.published.settings.SpanCorruption
    data.tasks.DatasetConfig data.vocabularies.ByteVocabulary data.vocabularies.SentencePieceVocabulary
    launching.gke.Gke launching.local.Local launching.slurm.Slurm launching.tpu.Tpu models.blip2.BLIP2
    models.decoding.BeamSearch models.decoding.Sampling models.pali.PaLI models.qformer.QFormerConfig
    models.stopping.StopStrings models.t5.T5 models.t5.T5Config models.vit.ViTConfig parallel.distributed.expect_devices
    parallel.mesh.make_mesh parallel.sharding.logical_axis_rules serving.predictor.Predictor studies.compare.Comparison
    studies.cost.step_cost studies.study.Study studies.sweep.Sweep training.members.learning_rates_around
    training.optimizers.adafactor training.optimizers.adamw training.optimizers.constant training.optimizers.grouped
    training.optimizers.warmup_constant training.optimizers.warmup_cosine training.optimizers.warmup_rsqrt
    training.prompt_start.from_class_labels training.prompt_start.from_vocabulary training.run.train
    training.run_checkpoints.CheckpointConfig training.run_pack.train_pack training.setup.Setup training.step.CrossEntropy
""".split()


def load(*files, bindings=()):
    configuration.load(configuration.GinFlags(tuple(map(str, files)), tuple(bindings)), require_all=False)


@pytest.mark.parametrize("old", sorted(moved.MODULES))
def test_an_old_module_is_the_new_one_and_warns(old):
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match=moved.MODULES[old]):
        module = importlib.import_module(old)
    assert module is importlib.import_module(moved.MODULES[old])


def test_names_are_imported_from_old_packages_in_a_fresh_process():
    program = (
        "from adalink_jax.studies import tiny\n"
        "from adalink_jax.data.files import FileTask\n"
        "from adalink_jax.data.files.guess import __name__ as name\n"
        "import adalink_jax.contract.tiny\n"
        "assert tiny is adalink_jax.contract.tiny and name == 'adalink_jax.data.user_files.column_guess'\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


OLD_FUNCTIONS = {
    "adalink_jax.training.run": ("evaluate", "cache_vision"),
    "adalink_jax.data.iterators": ("train_batches", "padded_batches"),
}


@pytest.mark.parametrize("module, name", [(module, name) for module in OLD_FUNCTIONS for name in OLD_FUNCTIONS[module]])
def test_a_function_that_moved_is_found_by_its_old_place_and_warns(module, name):
    with warnings.catch_warnings(action="ignore"):  # of a module that moved too
        old = importlib.import_module(module)
    with pytest.warns(DeprecationWarning, match=rf"\.{name} is now in adalink_jax"):
        assert callable(getattr(old, name))


@pytest.mark.parametrize("old", OLD_SELECTORS)
def test_every_old_selector_names_a_configurable(old):
    register()
    parts = f"adalink_jax.{old}".split(".")
    importlib.import_module(moved.MODULES.get(".".join(parts[:-1]), ".".join(parts[:-1])))
    for start in range(len(parts) - 1):
        selector = moved_selectors.current(".".join(parts[start:]))
        assert gin_config._REGISTRY.get_match(selector).selector.split(".")[-1] == parts[-1]


@pytest.mark.parametrize("selector", ["studies.study.Study", "adalink_jax.studies.study.Study", "study.Study", "Study"])
def test_an_old_selector_binds(tmp_path, selector):
    register()
    (tmp_path / "part.gin").write_text(f"{selector}.reference = 'full'\n")
    (tmp_path / "whole.gin").write_text(f"import adalink_jax.training.run_pack\ninclude '{tmp_path}/part.gin'\n")
    sys.modules.pop("adalink_jax.training.run_pack", None)
    with pytest.warns(DeprecationWarning, match="packs.run_pack"):
        load(tmp_path / "whole.gin", bindings=[(f"{selector}.seeds", "(4, 5)")])
    assert configuration.bindings() == {"Study.reference": "'full'", "Study.seeds": "(4, 5)"}


def test_old_selectors_work_wherever_gin_takes_one(tmp_path):
    """Scopes, blocks, references with scopes and inside values, macros; texts and comments stay as they are."""
    register()
    (tmp_path / "old.gin").write_text(
        "# studies.sweep.Sweep\n"
        "SWEEP = @scope/studies.sweep.Sweep()\n"
        "a/b/studies.study.Study.seeds = (7,)\n"
        "studies.study.Study:\n"
        "  reference = 'studies.sweep.Sweep'  # @studies.sweep.Sweep\n"
        "  methods = {'studies.sweep.Sweep': [@adalink_jax.studies.sweep.Sweep(), %SWEEP]}\n"
        "train.setup = @studies.sweep.Sweep()\n"
    )
    load(tmp_path / "old.gin")
    assert configuration.bindings() == {
        "Study.methods": "{'studies.sweep.Sweep': [@Sweep(), @scope/Sweep()]}",
        "Study.reference": "'studies.sweep.Sweep'",
        "a/b/Study.seeds": "(7,)",
        "train.setup": "@Sweep()",
    }
    written = gin_config.config_str()  # after loading, gin reads its own references again to write them
    assert "@adalink_jax.experiments.sweeps.sweep.Sweep" in written and "@studies" not in written


def test_errors_name_the_line_of_the_old_file(tmp_path):
    register()
    (tmp_path / "old.gin").write_text("studies.study.Study.seeds = (1,)\n\nstudies.study.Study.sedes = (1,)\n")
    with pytest.raises(UserError, match=r"old.gin, line 3: studies.study.Study.sedes is set, .* nearest: seeds"):
        load(tmp_path / "old.gin")
    (tmp_path / "old.gin").write_text("\nstudies.study.NoStudy.seeds = (1,)\n")
    with pytest.raises(UserError, match=r"old.gin, line 2: .* there is nothing called studies.study.NoStudy"):
        load(tmp_path / "old.gin")


def test_gin_is_unchanged_after_loading(tmp_path):
    register()
    before = (gin_config.ParseContext.get_configurable, gin_config.ParserDelegate.configurable_reference)
    (tmp_path / "bad.gin").write_text("studies.nothing.x = 1\n")
    with pytest.raises(UserError):
        load(tmp_path / "bad.gin")
    assert before == (gin_config.ParseContext.get_configurable, gin_config.ParserDelegate.configurable_reference)


def test_dynamic_registration_resolves_names_by_the_file_s_imports(tmp_path):
    """A user's own package called `studies` is not mistaken for an old module; in its own process, as gin never forgets one."""
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "study.py").write_text("def Study(seeds): return seeds\n")
    (tmp_path / "own.gin").write_text(
        "from __gin__ import dynamic_registration\nfrom studies import study\nstudy.Study.seeds = 3\n"
    )
    program = (
        "from gin import config\n"
        "from adalink_jax import configuration\n"
        "from adalink_jax.cli.arguments import register\n"
        "register()\n"
        "configuration.load(configuration.GinFlags(('own.gin',)), require_all=False)\n"
        "assert list(config._CONFIG) == [('', 'studies.study.Study')], config._CONFIG\n"
    )
    path = {"PYTHONPATH": f"{pathlib.Path(__file__).parent.parent}:{tmp_path}"}
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path, env=os.environ | path)


@pytest.mark.parametrize("file", sorted(OLD_CONFIGS.glob("*.gin")), ids=lambda file: file.stem)
def test_a_run_s_config_of_version_0_1_0_loads(file):
    register()
    load(file)
    bindings = configuration.bindings()
    assert bindings["Setup.model"] == "@AdaptedModel()"
