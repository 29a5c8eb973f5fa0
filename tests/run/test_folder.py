"""A run's folder: which phases are finished, and what is kept of each."""

from __future__ import annotations

import errno

import pytest

from growclip_ds import Architecture
from growclip_ds.errors import InputError
from growclip_ds.growth.phases import Phase, phase_epochs
from growclip_ds.growth.selection import Candidate
from growclip_ds.run.folder import RunFolder
from tests.records import phase_record
from tests.run.folders import config, finish


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
