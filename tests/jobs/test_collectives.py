"""Collectives counted in the text of compiled programs."""

import re

import pytest

from dsi_jax.jobs.precompile.collectives import Collective, find, merged

# A loop of three passes around a gather of 16 devices, and two reductions after it; the second
# gather is the one of TPUs that is split into a start, a middle and a done.
PROGRAM = """HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%start (p: bf16[32,64]) -> (bf16[32,64], bf16[512,64]) {
  %all-gather.1 = bf16[512,64]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=7, \
replica_groups=mesh['x'=16,'y'=4] {'x'}, dimensions={0}
}

%done (p: bf16[32,64]) -> bf16[512,64] {
  %all-gather.2 = bf16[512,64]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=7, \
replica_groups=mesh['x'=16,'y'=4] {'x'}, dimensions={0}
}

%body (s: (s32[], f32[8])) -> (s32[], f32[8]) {
  %all-gather.3 = f32[128]{0} all-gather(%x), channel_id=1, replica_groups=[4,16]<=[64], \
dimensions={0}
}

%condition (s: (s32[], f32[8])) -> pred[] {
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

%never (p: f32[4]) -> f32[4] {
  %all-reduce.9 = f32[1024]{0} all-reduce(%p), channel_id=9, replica_groups=[1,64]<=[64], \
to_apply=%add
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %loop = (s32[], f32[8]) while(%t), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"3"}}
  %f = (bf16[32,64], bf16[512,64]) fusion(%q), kind=kCustom, calls=%start
  %g = bf16[512,64] fusion(%f), kind=kCustom, calls=%done
  %all-reduce.1 = (f32[100]{0}, bf16[50]{0}) all-reduce(%a, %b), channel_id=3, \
replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  %local = f32[100]{0} all-reduce(%a), channel_id=4, replica_groups={{0},{1}}, to_apply=%add
  %scatter = f32[16]{0} reduce-scatter(%a), channel_id=5, replica_groups=[1,8]<=[8], \
dimensions={0}, to_apply=%add
  %turn = (f32[10]{0}, f32[10]{0}, u32[], u32[]) collective-permute-start(%a), channel_id=6, \
source_target_pairs={{0,1},{1,0}}
  ROOT %exchange = pred[64]{0} all-to-all(%a), channel_id=8, replica_groups=[1,4]<=[4]
}
"""


def test_every_collective_is_counted_as_often_as_it_runs():
    """The split one once; what nothing calls and what stays on a device, never."""
    assert find(PROGRAM) == [
        Collective("all-gather", ("bf16[512,64]",), 512 * 64 * 2, 16, 1),
        Collective("all-gather", ("f32[128]",), 512, 16, 3),
        Collective("all-reduce", ("f32[100]", "bf16[50]"), 500, 4, 1),
        Collective("reduce-scatter", ("f32[16]",), 64, 8, 1),
        Collective("collective-permute", ("f32[10]",), 40, 2, 1),
        Collective("all-to-all", ("pred[64]",), 64, 4, 1),
    ]


def test_a_loop_of_a_tpu_runs_as_often_as_its_condition_says():
    counted = re.sub(r", backend_config=.*", "", PROGRAM)
    assert "known_trip_count" not in counted
    once = find(counted)
    assert once[1].times == 1  # the bound is no constant
    constant = "  %n = s32[]{:T(128)} constant(3)\n  ROOT %less = pred[]{:T(512)} compare"
    assert find(counted.replace("  ROOT %less = pred[] compare", constant)) == find(PROGRAM)


@pytest.mark.parametrize(
    ("kind", "sent"),
    [
        ("all-gather", 750),  # three parts of four pass through each device
        ("all-reduce", 1500),  # a reduction and a gather of them
        ("reduce-scatter", 3000),  # the result is a quarter of what is reduced
        ("all-to-all", 750),
        ("collective-permute", 1000),
    ],
)
def test_bytes_of_a_ring(kind, sent):
    collective = Collective(kind, ("s8[1000]",), 1000, 4, 2)
    assert collective.sent_bytes == sent
    assert collective.all_sent_bytes == 2 * sent


def test_equal_ones_are_merged_the_heaviest_first():
    small, large = (Collective("all-gather", (), size, 4, 1) for size in (10, 99))
    assert merged([small, large, small]) == [large, Collective("all-gather", (), 10, 4, 2)]


def test_a_reduction_fused_with_its_slices_is_a_scatter():
    """TPUs give such fusions the same channel: those of other shapes are other ones."""

    def fusion(name: str, rows: int) -> str:
        return f"""%all-reduce-scatter.{name} (p: bf16[{rows},64]) -> bf16[{rows // 4},64] {{
  %all-reduce.{name} = bf16[{rows},64]{{1,0}} all-reduce(%p), channel_id=1, \
replica_groups={{{{0,1,2,3}}}}, to_apply=%add
}}

"""

    calls = "".join(f"  %{n} = f32[] fusion(%p), calls=%all-reduce-scatter.{n}\n" for n in "ab")
    text = f"{fusion('a', 8)}{fusion('b', 16)}ENTRY %main (p: f32[8]) -> f32[8] {{\n{calls}}}\n"
    assert find(text) == [
        Collective("reduce-scatter", ("bf16[8,64]",), 256, 4, 1),
        Collective("reduce-scatter", ("bf16[16,64]",), 512, 4, 1),
    ]


def test_groups_of_a_mesh_in_another_order():
    """As in a mesh of two axes of which the second is gathered first."""
    ordered = "replica_groups=mesh['x'=4,'y'=16], device_ids=([16,4]T(1,0)) {'y'}"
    text = PROGRAM.replace("replica_groups=mesh['x'=16,'y'=4] {'x'}", ordered)
    assert find(text) == find(PROGRAM)


def test_unknown_groups_are_an_error():
    text = PROGRAM.replace("replica_groups=[1,8]<=[8]", "replica_groups=elsewhere")
    with pytest.raises(ValueError, match=r"cannot read the groups .*: replica_groups=elsewhere,"):
        find(text)
