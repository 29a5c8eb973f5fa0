from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from growclip_ds import Architecture
from growclip_ds.config.config import Config, load_config
from growclip_ds.errors import InputError
from growclip_ds.evaluation.lists import read_list
from growclip_ds.yaml_files import parse_yaml, to_yaml

CONFIGS = Path(__file__).parents[2] / "configs"
DATA = """
data:
  subsets: [{name: one, shards: shards/one}, {name: two, shards: shards/two}]
  tokenizer: {vocab_size: 1000}
"""


@pytest.fixture
def load(tmp_path: Path):
    def load(text: str, *overrides: str) -> Config:
        file = tmp_path / "run.yaml"
        file.write_text(text)
        return load_config(file, overrides)

    return load


@pytest.fixture
def problem(load, tmp_path: Path):
    """The message of a configuration that is not right, the file called FILE."""

    def problem(text: str, *overrides: str) -> str:
        with pytest.raises(InputError) as caught:
            load(text, *overrides)
        return str(caught.value).replace(str(tmp_path / "run.yaml"), "FILE")

    return problem


def test_defaults_are_the_paper(load):
    config = load(DATA)
    assert config.model.base == Architecture(0, 6, 6, 6, 4, 0)
    assert (config.model.image_size, config.model.context_length) == (224, 77)
    growth, epochs, training = config.growth, config.epochs, config.training
    assert (growth.conv_step, growth.block_step, growth.head_step) == (2, 4, 4)
    assert (growth.beta, growth.gamma, growth.alpha) == (0.3, 0.001, 0.5)
    assert (epochs.first, epochs.supernet + epochs.selection + epochs.selected) == (30, 30)
    assert (training.optimizer, training.learning_rate, training.weight_decay) == ("lamb", 0.01, 1e-4)
    assert (training.global_batch_size, training.warmup_iterations) == (1536, 4000)
    assert config.num_growth_steps == 2
    assert config.model.sizes(1000).vocab_size == 1000


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.stem)
def test_shipped_configs_load_and_survive_a_round_trip(file: Path, tmp_path: Path):
    config = load_config(file)
    written = tmp_path / "config.yaml"
    written.write_text(config.to_yaml())
    assert load_config(written) == config


def test_cc12m_is_the_recipe_written_out():
    config = load_config(CONFIGS / "cc12m.yaml")
    plain = Config.model_validate({"data": config.model_dump(mode="json")["data"]})
    assert (config.model, config.growth, config.epochs, config.training) == (
        (plain.model, plain.growth, plain.epochs, plain.training)
    )
    assert config.num_growth_steps == 4
    assert config.data.tokenizer.vocab_size == 49408


def test_every_setting_is_described():
    def sections(model: type[BaseModel]):
        for name, field in model.model_fields.items():
            yield f"{model.__name__}.{name}", field
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                yield from sections(field.annotation)

    described = dict(sections(Config))
    assert len(described) > 40
    assert [name for name, field in described.items() if not field.description] == []


def test_overrides(load):
    config = load(
        DATA,
        "training.learning_rate=1e-3",
        "training.betas=[0.9, 0.95]",
        "training.activation_checkpointing=off",
        "model.base.image_blocks=3",
        "data.subsets.1.shards=elsewhere/{0..3}.tar",
        "growth.frozen=[text_heads]",
        "growth.max_parameters=null",
    )
    assert config.training.learning_rate == 1e-3
    assert config.training.betas == (0.9, 0.95)
    assert config.training.activation_checkpointing == "off"
    assert config.model.base == Architecture(0, 3, 6, 6, 4, 0)
    assert [subset.shards for subset in config.data.subsets] == ["shards/one", "elsewhere/{0..3}.tar"]
    assert config.growth.frozen == ("text_heads",)


def test_nothing_changes_afterwards(load):
    config = load(DATA)
    with pytest.raises(ValidationError):
        config.training.learning_rate = 1.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sed: 1", "FILE: there is no key sed; did you mean seed?"),
        ("learning_rate: 1", "FILE: there is no key learning_rate; did you mean training.learning_rate?"),
        (
            "training: {learnin_rate: 1}",
            "FILE: there is no key training.learnin_rate; did you mean training.learning_rate?",
        ),
        ("wombat: 1", "FILE: there is no key wombat; the configuration has seed, method, model, growth, epochs"),
        ("3: 1", "FILE: there is no key 3; the configuration has"),
        ("seed: one", "FILE: seed is 'one'; expected an integer, at least 0 and below 4294967296"),
        ("seed: true", "FILE: seed is True; expected an integer"),
        ("model: 3", "FILE: model is 3; expected a section with base, image_size, context_length, embed_dim"),
        (
            "model: {image_size: 97}",
            "FILE: model.image_size is 97; expected an integer, at least 16 and a multiple",
        ),
        ("model: {base: {image_heads: 0}}", "FILE: model.base.image_heads is 0; expected an integer, at least 1"),
        (
            "model: {base: {image_head: 3}}",
            "there is no key model.base.image_head; did you mean model.base.image_heads?",
        ),
        ("training: {optimizer: sgd}", "FILE: training.optimizer is 'sgd'; expected one of lamb, adamw"),
        ("training: {learning_rate: .inf}", "FILE: training.learning_rate is inf; expected a number, greater than 0"),
        ("training: {betas: [0.9, 1.0]}", "FILE: training.betas is [0.9, 1.0]; expected two numbers, each at least 0"),
        (
            "training: {micro_batch_size: -1}",
            "training.micro_batch_size is -1; expected an integer, at least 1, or",
        ),
        ("growth: {frozen: [heads]}", "FILE: growth.frozen is ['heads']; expected a list of conv_layers, image_blocks"),
        (
            "growth: {steps: 3}",
            "FILE: growth.steps is 3, but data.subsets lists 2: growth step t trains on subsets 1 to",
        ),
        (
            "evaluation: {datasets: [a/set, b/set]}",
            "FILE: evaluation.datasets: two sets are called 'set'; give each a name of its own: {name: …, path: …}",
        ),
        (
            "evaluation: {datasets: [a/food, 'https://huggingface.co/datasets/x/food/tree/main']}",
            "FILE: evaluation.datasets: two sets are called 'food'",
        ),
        (
            "evaluation: {datasets: [a/food, {name: food, path: b/other}]}",
            "FILE: evaluation.datasets: two sets are called 'food'",
        ),
        ("evaluation: {datasets: [a, '']}", "FILE: evaluation.datasets.1.path is ''; expected a non-empty string"),
        (
            "evaluation: {datasets: [{name: a}]}",
            "FILE: evaluation.datasets.0.path is missing; expected a non-empty string",
        ),
        (
            "evaluation: {datasets: [{path: a, spilt: val}]}",
            "there is no key evaluation.datasets.0.spilt; did you mean evaluation.datasets.0.split?",
        ),
        ("selection: {dataset: 7}", "FILE: selection.dataset is 7; expected a folder, or a section with path, split"),
        (
            "ablation: {grow_only: text_heads}\ngrowth: {frozen: [text_heads]}",
            "FILE: ablation.grow_only is text_heads, which growth.frozen keeps from growing: leave one of them out",
        ),
    ],
)
def test_each_problem_is_one_line(problem, text: str, message: str):
    shown = problem(DATA + text)
    assert message in shown
    assert "\n" not in shown


def test_sets_are_told_apart_by_the_names_that_they_are_reported_under(load):
    hub = "https://huggingface.co/datasets/clip-benchmark"
    addresses = f"{hub}/wds_mnist/tree/main, {hub}/wds_food101/tree/main, 'pipe:cat sets/things/{{}}', 'pipe:cat {{}}'"
    assert len(load(DATA, f"evaluation.datasets=[{addresses}]").evaluation.datasets) == 4


def test_a_folder_alone_is_a_set_of_that_name(load):
    text = (
        "selection: {dataset: {path: sets/food, split: val}}\nevaluation: {datasets: [sets/food, {path: b, name: B}]}"
    )
    config = load(DATA + text)
    sets = [config.selection.dataset, *config.evaluation.datasets]
    assert [(one.path, one.split, one.name) for one in sets] == [
        ("sets/food", "val", "food-val"),
        ("sets/food", "test", "food"),
        ("b", "test", "B"),
    ]
    assert load(config.to_yaml()) == config


def test_overrides_go_into_a_set_that_is_a_folder(load):
    overrides = ("evaluation.datasets=[a, b]", "evaluation.datasets.0.split=val", "selection.dataset.split=val")
    config = load(DATA + "selection: {dataset: a}", *overrides)
    assert [one.name for one in config.evaluation.datasets] == ["a-val", "b"]
    assert (config.selection.dataset.path, config.selection.dataset.split) == ("a", "val")
    assert load(DATA, "selection.dataset=a").selection.dataset.path == "a"


def test_sets_that_are_folders_are_recorded_as_before_they_could_have_names(load):
    """A run is known by this to go on as it began."""
    recorded = load(DATA, "selection.dataset=sets/a", "evaluation.datasets=[sets/b, {path: c, split: val}]").to_yaml()
    sections = parse_yaml(recorded, "recorded")
    assert sections["selection"]["dataset"] == "sets/a"
    assert sections["evaluation"]["datasets"] == ["sets/b", {"path": "c", "split": "val", "name": "c-val"}]


def test_the_papers_run_calls_sets_as_the_papers_list_does():
    run, listed = load_config(CONFIGS / "cc12m.yaml"), read_list(CONFIGS / "eval" / "paper.yaml", "data/eval")
    assert [(one.name, one.path) for one in run.evaluation.datasets] == [
        (one.name, listed.location(one)) for one in listed.sets
    ]


def test_all_problems_at_once(problem):
    lines = problem(DATA + "training: {learning_rate: fast, optimizer: sgd}\nseed: x").splitlines()
    assert len(lines) == 3
    assert all(line.startswith("FILE: ") and "expected" in line for line in lines)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("", "FILE: data is missing; expected a section with subsets, tokenizer, workers"),
        ("data: {subsets: [], tokenizer: {vocab_size: 300}}", "data.subsets is []; expected a list with at least one"),
        ("data: {subsets: [{name: a, shrds: x}], tokenizer: {vocab_size: 300}}", "did you mean data.subsets.0.shards?"),
        (
            "data: {subsets: [{name: a, shards: ''}], tokenizer: {vocab_size: 300}}",
            "data.subsets.0.shards is ''; expected",
        ),
        (
            "data: {subsets: [{name: a, shards: x}], tokenizer: {}}",
            "FILE: data.tokenizer: a tokenizer is to be trained",
        ),
        (
            "data: {subsets: [{name: a, shards: x}, {name: a, shards: y}], tokenizer: {vocab_size: 300}}",
            "FILE: data.subsets: two data subsets are called 'a'; give each a name of its own",
        ),
    ],
)
def test_data_problems(problem, data: str, message: str):
    assert message in problem(f"seed: 0\n{data}")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "the command line's 'seed' is not an override; write section.key=value"),
        ("=3", "the command line's '=3' is not an override"),
        ("training.learnin_rate=1", "the command line: there is no key training.learnin_rate; did you mean"),
        (
            "training.learning_rate=x",
            "the command line: training.learning_rate is 'x'; expected a number, greater than 0",
        ),
        ("training.learning_rate=[", "line 1, column 2 is not valid YAML"),
        (
            "data.subsets.2.shards=x",
            "the command line sets data.subsets.2.shards, but data.subsets.2 is not among the list",
        ),
        (
            "data.subsets.a.shards=x",
            "the command line sets data.subsets.a.shards, but data.subsets.a is not among the list",
        ),
        ("data.subsets.0.name.x=1", "but data.subsets.0.name is 'one', which has no keys"),
        ("model={image_size: 100}", "the command line: model.image_size is 100; expected an integer, at least 16"),
    ],
)
def test_override_problems(problem, override: str, message: str):
    assert message in problem(DATA, override)


def test_a_list_in_a_file_is_named_where_it_is_at_fault(problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "list.yaml").write_text("- {name: one, shards: a}\n- {name: two}\n")
    text = f"data: {{subsets: {tmp_path}/list.yaml, tokenizer: {{vocab_size: 300}}}}"
    missing = "data.subsets.1.shards is missing; expected a non-empty string"
    assert problem(text) == f"{tmp_path}/list.yaml: {missing}"
    assert problem(DATA, f"data.subsets={tmp_path}/list.yaml") == f"{tmp_path}/list.yaml: {missing}"
    assert problem(text, "data.subsets.1={name: two}") == f"the command line: {missing}"
    monkeypatch.chdir(tmp_path)
    assert (
        problem(DATA, "data.subsets=lists/mine.yaml") == f"data.subsets: there is no file lists/mine.yaml in {tmp_path}"
    )


def test_settings_that_contradict_each_other_may_be_from_either_place(problem):
    assert problem(DATA, "growth.steps=9").startswith("FILE and the command line: growth.steps is 9, but data.subsets")
    assert problem(DATA + "growth: {steps: 9}").startswith("FILE: growth.steps is 9")


def test_an_override_of_an_item_of_an_empty_list(problem):
    text = DATA + "evaluation: {datasets: []}"
    for key in ("evaluation.datasets.0", "evaluation.datasets.0.name"):
        shown = problem(text, f"{key}=x")
        assert shown == f"the command line sets {key}, but evaluation.datasets is an empty list"


def test_unreadable_files(tmp_path: Path, problem):
    with pytest.raises(InputError, match="there is no file"):
        load_config(tmp_path / "missing.yaml")
    with pytest.raises(InputError, match="cannot be read"):
        load_config(tmp_path)
    assert "FILE, line 2, column 1 is not valid YAML: the key 'seed' is given twice" in problem("seed: 1\nseed: 2")
    assert "FILE, line 2, column 8 is not valid YAML: a key must be plain text" in problem("seed: 1\ndata: {{x}}")
    assert "FILE, line 1, column 2 is not valid YAML: a key must be plain text" in problem("{[1, 2]: 3}")
    assert "FILE, line 1, column 7 is not valid YAML: 'x' is not an integer" in problem("seed: !!int x")
    assert "FILE must hold sections of settings" in problem("- 1")
    assert "could not determine a constructor" in problem("seed: !!python/object/apply:os.getcwd []")


def test_held_out_pairs_only_without_a_labelled_set(load):
    assert load(DATA).held_out_pairs == 1000
    assert load(DATA, "selection.dataset=eval/set").held_out_pairs == 0


@pytest.mark.parametrize(
    ("setting", "needs"),
    [
        ("health.spike_action=stop", "health.spike_factor=3"),
        ("evaluation.every_epochs=1", "evaluation.datasets=[eval/a]"),
    ],
)
def test_warns_of_a_setting_that_has_no_effect_without_another(load, setting: str, needs: str):
    (warning,) = load(DATA, setting).warnings()
    assert warning.startswith(f"{setting.partition('=')[0]} has no effect without {needs.partition('=')[0]}")
    assert load(DATA, setting, needs).warnings() == []


def test_warns_of_choosing_by_what_is_reported(load):
    both = load(DATA, "selection.dataset=eval/a", "evaluation.datasets=[eval/b, ./eval/a]")
    assert len(both.warnings()) == 1
    assert "selection.dataset, eval/a, is one of evaluation.datasets" in both.warnings()[0]
    assert load(DATA, "selection.dataset=eval/a", "evaluation.datasets=[eval/b]").warnings() == []
    split = "selection.dataset={path: eval/a, split: val}"
    assert load(DATA, split, "evaluation.datasets=[eval/a]").warnings() == []
    (warning,) = load(DATA, split, "evaluation.datasets=[{name: A, path: eval/a, split: val}]").warnings()
    assert "selection.dataset, eval/a (val), is one of" in warning


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1.5E6", 1.5e6),
        (".5", 0.5),
        ("1_000", 1000),
        ("1_000.000_5", 1000.0005),
        ("1.", 1.0),
        ("1_", "1_"),
        ("1__0", "1__0"),
        ("1_.5", "1_.5"),
        ("1._5", "1._5"),
        ("1.5_", "1.5_"),
        ("010", 10),
        ("-3", -3),
        ("off", "off"),
        ("yes", "yes"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("'1e-3'", "1e-3"),
        ("true", True),
        ("~", None),
        ("", None),
    ],
)
def test_yaml_as_people_write_it(text: str, value: object):
    parsed = parse_yaml(text, "text")
    assert parsed == value
    assert type(parsed) is type(value)
    assert parse_yaml(to_yaml({"key": value}), "text") == {"key": value}
