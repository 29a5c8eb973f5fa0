"""Memory and communication against those of real engines: every live tensor counted, through three iterations."""

from __future__ import annotations

import pytest

from growclip_ds.architecture import Architecture
from growclip_ds.costs.communication import communication
from growclip_ds.costs.memory import Memory, Sharding, memory
from tests.costs.measured import Case, Measured, measure
from tests.group import Groups

WIDE, DEEP, STEM = Architecture(0, 1, 4, 1, 4, 1), Architecture(0, 4, 2, 3, 2, 2), Architecture(3, 1, 2, 1, 3, 0)
FP32_SUMS = {"data_types": {"grad_accum_dtype": "fp32"}}
OFFLOAD = {"offload_optimizer": {"device": "cpu"}}

QUICK = [
    Case(WIDE, 1),
    Case(STEM, 2, pairs=32, checkpointing="on"),
    Case(WIDE, 2, "bf16", config=FP32_SUMS, zero={"overlap_comm": True}),
    Case(DEEP, 2, micro_batches=2),
    Case(DEEP, 3, "bf16", pairs=16, captions=30, config=FP32_SUMS),
    Case(WIDE, 3, micro_batches=2),
]
ALL = [
    Case(architecture, stage, dtype, pairs, micro_batches, checkpointing=checkpointing, config=config)
    for stage in (1, 2, 3)
    for dtype, config in (("fp32", {}), ("bf16", {}), ("bf16", FP32_SUMS))
    if not (stage == 1 and config)
    for architecture, pairs, micro_batches, checkpointing in ((WIDE, 64, 1, "on"), (DEEP, 32, 2, "off"))
] + [Case(WIDE, stage, zero=OFFLOAD) for stage in (1, 2, 3)]


def predicted(case: Case, ranks: int) -> Memory:
    sharding = Sharding.of(case.deepspeed, ranks)
    return memory(case.architecture, case.sizes, sharding, case.load(ranks))


def check(cases: list[Case], of_ranks: list[list[Measured]]) -> None:
    ranks = len(of_ranks)
    wrong = []
    for case, *found in zip(cases, *of_ranks, strict=True):
        foretold = predicted(case, ranks)
        sent = communication(case.architecture, case.sizes, Sharding.of(case.deepspeed, ranks), case.load(ranks))
        # On the CPU main memory is the device's.
        peaks = [one.peaks[-1] for one in found]
        errors = {
            "at rest": (foretold.at_rest + foretold.host) / found[0].states - 1,
            "peak": (foretold.peak + foretold.host) / max(peaks) - 1,
        }
        if ranks > 1:
            errors["sent"] = sent.total / sent_by_rings(found[0].communicated, ranks) - 1
        limits = {"at rest": 0.01, "peak": 0.1, "sent": 0.02}
        print(case, {name: f"{error:+.1%}" for name, error in errors.items()}, foretold.peak_at)
        wrong += [(case, name, error) for name, error in errors.items() if abs(error) > limits[name]]
        for one in found:  # the gradient norm stays, and nothing else
            assert 0 <= one.rest - one.states <= 64, case
    assert not wrong


def sent_by_rings(communicated: dict[str, int], ranks: int) -> float:
    """Bytes that a rank sends, of tensors that collectives went over."""
    share = (ranks - 1) / ranks
    times = {"all-reduce": 2, "all-gather": 1, "reduce-scatter": 1}
    return sum(share * times[name] * size for name, size in communicated.items())


def test_engines_hold_and_send_what_is_foretold(group: Groups) -> None:
    check(QUICK, group(2).run(measure, QUICK))


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_in_all_stages_precisions_and_batches(group: Groups, ranks: int) -> None:
    check(ALL, group(ranks).run(measure, ALL, limit=600))


def test_more_ranks_need_less_each_where_states_are_divided() -> None:
    for stage in (1, 2, 3):
        one, many = (predicted(Case(WIDE, stage, "bf16"), ranks) for ranks in (1, 64))
        assert many.optimizer == pytest.approx(one.optimizer / 64, rel=1e-3)
        assert (many.parameters < one.parameters) == (stage == 3)
        assert (many.gradients < one.gradients) == (stage > 1)


@pytest.mark.parametrize("stage", [1, 2])
def test_buckets_hold_the_largest_gradient_where_gradients_are_reduced_meanwhile(stage: int) -> None:
    small = {"reduce_bucket_size": 10}
    overlapped, alone = (
        predicted(Case(WIDE, stage, zero=small | {"overlap_comm": overlap}), 2).buckets for overlap in (True, False)
    )
    assert alone == 4 * 10
    assert overlapped > 1000 * alone


def test_only_stage_3_reduces_while_it_computes_unless_that_is_stated() -> None:
    """As DeepSpeed has it, whatever stage the file is of."""
    of_stage_2, of_stage_3 = (Sharding.of(Case(WIDE, stage).deepspeed, 2) for stage in (2, 3))
    stated = Sharding.of(Case(WIDE, 3, zero={"overlap_comm": True}).deepspeed, 2)
    assert of_stage_3.at_stage(2).buckets == of_stage_3.at_stage(1).buckets == of_stage_2.buckets == 1
    assert stated.at_stage(2).buckets == 2


def test_offloading_moves_the_optimizer_to_main_memory() -> None:
    for stage in (1, 2, 3):
        here, there = predicted(Case(WIDE, stage), 2), predicted(Case(WIDE, stage, zero=OFFLOAD), 2)
        assert there.optimizer == 0
        assert there.peak < here.peak
        assert there.host > here.optimizer > here.host == 0


def test_only_stage_3_offloads_parameters() -> None:
    """A plan shows all stages, whatever the file's is."""

    case = Case(WIDE, 3, zero={"offload_param": {"device": "cpu"}})
    of_stage_3 = Sharding.of(case.deepspeed, 2)
    stages = [of_stage_3.at_stage(stage) for stage in (1, 2, 3)]
    share = 4 * case.sizes.parameters_of(WIDE) / 2
    host = [memory(WIDE, case.sizes, sharding, case.load(2)).host for sharding in stages]
    assert host == pytest.approx([0, 0, share], rel=0.01)


def test_a_bucket_is_of_its_full_size_however_small_the_model() -> None:
    case = Case(WIDE, 2, "bf16", zero={"reduce_bucket_size": 500_000_000})
    assert predicted(case, 2).buckets == 2 * 500_000_000
    assert predicted(case, 2).peak > 10**9
