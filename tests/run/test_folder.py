from __future__ import annotations

import errno
import socket
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from growclip_ds import Architecture
from growclip_ds.config.config import Config, load_config
from growclip_ds.distributed import rank
from growclip_ds.errors import InputError
from growclip_ds.growth.phases import Phase, phase_epochs
from growclip_ds.growth.selection import Candidate
from growclip_ds.run import folder as folder_module
from growclip_ds.run.folder import RunFolder, open_run
from tests.records import phase_record


def config(subsets: int = 2, **sections: Any) -> Config:
    listed = [{"name": f"s{i}", "shards": f"shards/{i}"} for i in range(subsets)]
    data = {"subsets": listed, "tokenizer": {"vocab_size": 1000}, **sections.pop("data", {})}
    return Config.model_validate({"data": data, **sections})


def finish(folder: RunFolder, step: int, phase: Phase, **record: Any) -> None:
    folder.weights(step, phase).mkdir(parents=True)
    folder.finish(phase_record(step, phase, **record))


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return open_run(tmp_path / "runs" / "one", config())


@pytest.fixture
def begun(folder: RunFolder) -> RunFolder:
    finish(folder, 1, Phase.TRAIN)
    return folder


def test_a_new_run_writes_its_configuration(folder: RunFolder):
    assert load_config(folder.config_file) == config()
    assert folder.path.name == "one"
    assert sorted(path.name for path in folder.path.iterdir()) == ["config.yaml"]


def test_the_same_run_opens_again(folder: RunFolder):
    assert open_run(folder.path, config()) == folder


def test_another_run_is_refused(begun: RunFolder):
    before = begun.config_file.read_text()
    other = config(
        seed=1,
        training={"learning_rate": 0.1},
        data={"tokenizer": {"vocab_size": 2000}},
    )
    with pytest.raises(InputError) as caught:
        open_run(begun.path, other)
    assert str(caught.value) == (  # one line: a Slurm job's comment has no more
        f"{begun.path} holds a run with another configuration (seed: 0 there, 1 now; data.tokenizer.vocab_size: 1000 "
        "there, 2000 now; training.learning_rate: 0.01 there, 0.1 now); use another --output-dir, or continue the "
        f"run as it began (--config {begun.config_file})"
    )
    assert begun.config_file.read_text() == before


def test_a_run_that_has_done_nothing_may_begin_anew_with_another_configuration(folder: RunFolder):
    folder.data_file.write_text("[]")
    (folder.phase(1, Phase.TRAIN) / ".weights.partial").mkdir(parents=True)
    folder.tokenizer.mkdir()
    other = config(seed=1, model={"context_length": 20})
    open_run(folder.path, other)
    assert load_config(folder.config_file) == other
    assert sorted(path.name for path in folder.path.iterdir()) == ["config.yaml"]


def test_beginning_anew_removes_only_what_a_run_writes(folder: RunFolder):
    (folder.phase(1, Phase.TRAIN) / "checkpoints").mkdir(parents=True)
    others = ["step_1/notes.txt", "step_1000/model.bin", "step_2000/optimizer/model.bin", "tokenizer/tokenizer.json"]
    for name in others:
        (folder.path / name).parent.mkdir(parents=True, exist_ok=True)
        (folder.path / name).write_text("of another trainer")
    open_run(folder.path, config(seed=1))
    there = [path.relative_to(folder.path).as_posix() for path in folder.path.rglob("*") if path.is_file()]
    assert sorted(there) == ["config.yaml", *others]
    assert not folder.phase(1, Phase.TRAIN).exists()


@pytest.mark.parametrize("text", ["trainer: lightning\n", "data: {subsets: []}\n", "- a list\n", ""])
def test_a_configuration_that_no_run_wrote_is_kept(tmp_path: Path, text: str):
    """Such as `--output-dir .` in the folder of a project."""
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(InputError, match=r"config\.yaml was not written by a run; use another --output-dir"):
        open_run(tmp_path, config())
    assert (tmp_path / "config.yaml").read_text() == text


@pytest.mark.parametrize("name", ["tokenizer", "data.yaml", "deepspeed.json"])
def test_files_with_the_names_of_a_runs_are_not_taken_for_its_own(tmp_path: Path, name: str):
    (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=rf"{name} was not written by a run; use another --output-dir"):
        open_run(tmp_path, config())
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_records_are_kept_where_the_weights_are_gone(begun: RunFolder):
    begun.weights(1, Phase.TRAIN).rmdir()
    begun.data_file.write_text("[]")
    open_run(begun.path, config())
    assert begun.is_finished(1, Phase.TRAIN)
    assert begun.data_file.exists()
    with pytest.raises(InputError, match="another configuration"):
        open_run(begun.path, config(seed=1))


def test_a_run_with_a_setting_that_is_gone_is_refused(begun: RunFolder):
    begun.config_file.write_text(begun.config_file.read_text().replace("beta:", "old_beta:"))
    with pytest.raises(InputError, match=r"growth\.old_beta: 0\.3 there, not set now"):
        open_run(begun.path, config())


def test_what_does_not_bear_on_the_weights_may_change(begun: RunFolder):
    changed = config(
        subsets=3,
        data={"workers": 0},
        growth={"steps": 3},
        training={"micro_batch_size": 4, "activation_checkpointing": "on"},
        selection={"batch_size": 3},
        evaluation={"datasets": ["eval/a"], "batch_size": 5, "every_epochs": 2},
        monitoring={"log_every": 3},
    )
    before = begun.config_file.read_text()
    open_run(begun.path, changed)
    assert begun.config_file.read_text() == before  # not yet: its data may turn out not to be there
    begun.write_config(changed)
    assert load_config(begun.config_file) == changed


def test_a_run_with_a_checkpoint_has_begun(folder: RunFolder):
    (folder.checkpoints(1, Phase.TRAIN) / "iteration_000000002").mkdir(parents=True)
    with pytest.raises(InputError, match="another configuration"):
        open_run(folder.path, config(seed=1))
    assert open_run(folder.path, config()) == folder
    folder.remove_checkpoints(1, Phase.TRAIN)
    open_run(folder.path, config(seed=1))


@pytest.mark.parametrize("prefix", ["iteration", "damaged_iteration"])
def test_nothing_is_removed_of_a_run_with_a_checkpoint(folder: RunFolder, prefix: str):
    checkpoint = folder.checkpoints(1, Phase.TRAIN) / f"{prefix}_000000002"
    checkpoint.mkdir(parents=True)
    with pytest.raises(InputError, match="another configuration"):
        open_run(folder.path, config(seed=1))
    open_run(folder.path, config())
    assert checkpoint.exists()


def test_nothing_is_removed_of_a_run_that_cannot_be_read(begun: RunFolder, monkeypatch: pytest.MonkeyPatch):
    def fail(folder: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("os.listdir", fail)
    monkeypatch.setattr("os.scandir", fail)
    with pytest.raises(InputError, match="cannot be read: Input/output error"):
        open_run(begun.path, config())
    assert begun.weights(1, Phase.TRAIN).exists()


def test_what_of_the_deepspeed_file_bears_on_the_weights_is_told_when_it_changes(folder: RunFolder):
    assert folder.keep_numerics({"precision": "bf16", "gradient_clipping": 0.0}) == []
    assert folder.keep_numerics({"precision": "bf16", "gradient_clipping": 0.0}) == []
    changes = folder.keep_numerics({"precision": "fp32", "gradient_clipping": 0.0})
    assert changes == ['precision: "bf16" before, "fp32" now']
    assert folder.keep_numerics({"precision": "fp32", "gradient_clipping": 0.0}) == []
    folder.deepspeed_file.write_text("{")
    with pytest.raises(InputError, match=r"deepspeed\.json cannot be read"):
        folder.keep_numerics({})


def test_what_an_older_version_did_not_record_has_not_changed(folder: RunFolder):
    assert folder.keep_numerics({"precision": "bf16"}) == []
    reduction = {"communication_data_type": "fp32", "prescale_gradients": None, "gradient_predivide_factor": None}
    assert folder.keep_numerics({"precision": "bf16", **reduction}) == []
    changes = folder.keep_numerics({"precision": "bf16", **reduction, "communication_data_type": "bf16"})
    assert changes == ['communication_data_type: "fp32" before, "bf16" now']
    assert folder.keep_numerics({"precision": "bf16", **reduction, "gradient_clipping": 1.0}) == [
        'communication_data_type: "bf16" before, "fp32" now',
        "gradient_clipping: not set before, 1.0 now",
    ]


def test_errors_in_writing_are_explained_where_a_user_can_mend_them(folder: RunFolder):
    with pytest.raises(OSError, match="i/o"), folder.errors_explained():
        raise OSError(errno.EIO, "i/o")
    with (
        pytest.raises(InputError, match=r"cannot be written: .*No space left on device; make room"),
        folder.errors_explained(),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    folder.require_there()
    folder.config_file.unlink()
    with pytest.raises(InputError, match=r"config\.yaml was removed during the run"), folder.errors_explained():
        raise FileNotFoundError(errno.ENOENT, "gone")
    with pytest.raises(InputError, match=r"config\.yaml was removed during the run"):
        folder.require_there()


def test_folders_that_cannot_be_runs(tmp_path: Path):
    (tmp_path / "odd" / "step_1" / "train" / "weights").mkdir(parents=True)
    with pytest.raises(InputError, match=r"holds growth steps, but no config\.yaml"):
        open_run(tmp_path / "odd", config())
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        open_run(tmp_path / "file", config())
    (tmp_path / "damaged" / "step_1" / "train" / "weights").mkdir(parents=True)
    (tmp_path / "damaged" / "config.yaml").write_text("")
    with pytest.raises(InputError, match=r"config\.yaml is damaged"):
        open_run(tmp_path / "damaged", config())
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "slurm-1.out").write_text("")
    open_run(tmp_path / "logs", config())


def test_goes_on_with_the_first_unfinished_phase(folder: RunFolder):
    steps = [(step, phase) for step in range(1, 4) for phase in phase_epochs(config(3), step)]
    assert folder.first_unfinished(steps) == (1, Phase.TRAIN)
    finish(folder, 1, Phase.TRAIN)
    assert folder.first_unfinished(steps) == (2, Phase.FINETUNE)
    assert folder.first_unfinished(steps[:1]) is None
    finish(folder, 2, Phase.FINETUNE)
    assert not folder.is_trained(2, Phase.SELECTION)
    folder.weights(2, Phase.SELECTION).mkdir(parents=True)  # interrupted before it was recorded
    assert folder.is_trained(2, Phase.SELECTION)
    assert folder.first_unfinished(steps) == (2, Phase.SELECTION)
    folder.finish(phase_record(2, Phase.SELECTION))
    assert folder.is_finished(2, Phase.SELECTION)
    assert folder.first_unfinished(steps) == (2, Phase.TRAIN)


def test_a_step_needs_the_one_before(folder: RunFolder):
    folder.require_step_before(1)
    finish(folder, 1, Phase.TRAIN)
    folder.require_step_before(2)
    finish(folder, 2, Phase.FINETUNE)
    with pytest.raises(InputError) as caught:
        folder.require_step_before(3)
    assert str(caught.value) == (
        f"growth step 3 needs step 2, which is not finished in {folder.path}: run --growth-step 2 first"
    )


def test_records(folder: RunFolder):
    architecture = Architecture(1, 2, 3, 4, 5, 6)
    candidates = [Candidate(architecture, 2, 30.0, 30.0), Candidate(Architecture(1, 1, 1, 1, 1, 1), 1, 20.0, 21.0)]
    finish(folder, 1, Phase.TRAIN, iterations=100)
    finish(folder, 2, Phase.FINETUNE, iterations=20)
    finish(folder, 2, Phase.SELECTION, iterations=30, selection_set="things", candidates=candidates)
    assert [folder.iterations_before(1, Phase.TRAIN), folder.iterations_before(2, Phase.FINETUNE)] == [0, 100]
    assert [folder.iterations_before(2, Phase.SELECTION), folder.iterations_before(2, Phase.TRAIN)] == [120, 150]
    assert folder.selected_architecture(2) == architecture
    assert [(record.step, str(record.phase), record.iterations) for record in folder.records()] == [
        (1, "train", 100),
        (2, "finetune", 20),
        (2, "selection", 30),
    ]
    with pytest.raises(InputError, match="the train phase of growth step 2 is not finished"):
        folder.record(2, Phase.TRAIN)
    folder.record_file(2, Phase.FINETUNE).write_text("{")
    with pytest.raises(InputError, match=r"phase\.json cannot be read .*; remove it, and the run evaluates"):
        folder.record(2, Phase.FINETUNE)


def open_run_on_a_rank(path: str, seed: int) -> str:
    try:
        folder = open_run(path, config(seed=seed))
    except InputError as error:
        return str(error)
    assert not folder.is_finished(1, Phase.TRAIN)
    folder.weights(1, Phase.TRAIN).mkdir(parents=True, exist_ok=True)
    folder.finish(phase_record(iterations=3))
    assert folder.is_finished(1, Phase.TRAIN)
    return str(folder.iterations_before(2, Phase.FINETUNE))


def test_on_several_ranks(group, tmp_path: Path):
    assert group(2).run(open_run_on_a_rank, str(tmp_path / "run"), 0) == ["3", "3"]
    first, second = group(2).run(open_run_on_a_rank, str(tmp_path / "run"), 1)
    assert "(seed: 0 there, 1 now)" in first
    assert second == first


def open_own_run(path: str) -> str:
    with mock.patch.object(folder_module, "SHARED_WITHIN", 0.0), pytest.raises(InputError) as caught:
        open_run(Path(path) / str(rank()), config())
    return str(caught.value)


def test_a_folder_that_machines_do_not_share(group, tmp_path: Path):
    """Each has a local disk under the same path; noticed before the first checkpoint."""
    message = f"{socket.gethostname()} does not see {tmp_path / '1' / 'config.yaml'}: put --output-dir on a file system"
    said = group(2).run(open_own_run, str(tmp_path))
    assert said == [f"{message} that all machines share"] * 2
