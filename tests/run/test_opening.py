"""A run's folder is created or resumed; what belongs to another run, or to no run, stays as it is."""

from __future__ import annotations

import errno
import socket
from pathlib import Path
from unittest import mock

import pytest

from growclip_ds.config.config import load_config
from growclip_ds.distributed import rank
from growclip_ds.errors import InputError
from growclip_ds.growth.phases import Phase
from growclip_ds.run import opening
from growclip_ds.run.folder import RunFolder
from growclip_ds.run.opening import open_run
from tests.records import phase_record
from tests.run.folders import config, finish


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
    with mock.patch.object(opening, "SHARED_WITHIN", 0.0), pytest.raises(InputError) as caught:
        open_run(Path(path) / str(rank()), config())
    return str(caught.value)


def test_a_folder_that_machines_do_not_share(group, tmp_path: Path):
    """Each has a local disk under the same path; noticed before the first checkpoint."""
    message = f"{socket.gethostname()} does not see {tmp_path / '1' / 'config.yaml'}: put --output-dir on a file system"
    said = group(2).run(open_own_run, str(tmp_path))
    assert said == [f"{message} that all machines share"] * 2
