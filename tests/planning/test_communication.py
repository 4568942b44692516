"""The communication of compiled programs: how often, among how many devices, and how many bytes each sends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from instructjax.planning.communication import Collective, bytes_sent, collectives

TRIPS = 5


def compiled(function, *specs):
    """Returns the text of a program over 8 devices, two groups of four, whose arguments have 16 numbers each."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:8]).reshape(2, 4), ("a", "b"))
    mapped = jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=P(None), check_vma=False)
    return jax.jit(mapped).lower(*[jnp.ones(16)] * len(specs)).compile().as_text()


def test_a_sum_in_a_loop_counts_as_often_as_the_loop_runs():
    def function(x):
        return jax.lax.scan(lambda c, _: (jax.lax.psum(jnp.sin(c), "b"), None), x, length=TRIPS)[0]

    text = compiled(function, P(None))
    (found,) = collectives(text)
    assert found == Collective("all-reduce", "f32", 16, 64.0, devices=4, loops=1, runs=TRIPS)
    assert bytes_sent(text) == TRIPS * 2 * 64 * 3 / 4  # a ring sends and receives three quarters twice


@pytest.mark.parametrize(
    ("function", "spec", "operation", "sent"),
    [
        (lambda x: jax.lax.all_gather(x, "b", tiled=True), P("b"), "all-gather", 64 * 3 / 4),
        (lambda x: jax.lax.psum_scatter(x, "b", tiled=True), P(None), "reduce-scatter", 64 * 3 / 4),
        (lambda x: jax.lax.ppermute(x, "b", [(0, 1), (1, 0)]), P(None), "collective-permute", 64),
    ],
)
def test_the_bytes_that_a_device_sends(function, spec, operation, sent):
    text = compiled(function, spec)
    assert [one.operation for one in collectives(text)] == [operation]
    assert bytes_sent(text) == sent


def test_forms_that_a_compiler_for_tpus_writes():
    """Groups by the axes of a mesh, and a collective that is written into each fusion with which it overlaps."""
    gather = (
        "  %g{} = bf16[4,8]{{1,0:T(8,128)(2,1)}} all-gather(%p), channel_id=7, "
        "replica_groups=mesh['x'=2,'y'=4] {{'y'}}, dimensions={{0}}"
    )
    text = "\n".join(
        [
            "%fusion.1 (p: bf16[1,8]) -> bf16[4,8] {",
            gather.format(1),
            "}",
            "%fusion.2 (p: bf16[1,8]) -> bf16[4,8] {",
            gather.format(2),
            "}",
            "%cond (c: s32[]) -> pred[] {",
            "  %limit = s32[]{:T(128)} constant(3)",
            "}",
            "%body (c: s32[]) -> s32[] {",
            "  %one = bf16[4,8]{1,0} fusion(%c), kind=kLoop, calls=%fusion.1",
            "  %two = bf16[4,8]{1,0} fusion(%c), kind=kLoop, calls=%fusion.2",
            "}",
            "ENTRY %main (c: s32[]) -> s32[] {",
            "  %loop = s32[] while(%c), condition=%cond, body=%body",
            "}",
        ]
    )
    assert collectives(text) == [Collective("all-gather", "bf16", 32, 64.0, devices=4, loops=1, runs=3)]


def test_a_reduce_scatter_that_a_compiler_for_tpus_writes_as_an_all_reduce():
    """It has the channel of another collective."""
    text = "\n".join(
        [
            "%all-reduce-scatter.4.clone (a: f32[4,8], b: f32[4,8]) -> (f32[2,8], f32[2,8]) {",
            "  %r = (f32[4,8]{1,0}, f32[4,8]{1,0}) all-reduce(%a, %b), channel_id=1, replica_groups={{0,1},{2,3}}",
            "}",
            "ENTRY %main (a: f32[4,8], b: f32[4,8], c: bf16[1,8]) -> (f32[2,8], f32[2,8]) {",
            "  %g = bf16[4,8]{1,0} all-gather(%c), channel_id=1, replica_groups={{0,1,2,3}}, dimensions={0}",
            "  ROOT %s = (f32[2,8], f32[2,8]) fusion(%a, %b), kind=kCustom, calls=%all-reduce-scatter.4.clone",
            "}",
        ]
    )
    found = {one.operation: one for one in collectives(text)}
    assert found["all-gather"] == Collective("all-gather", "bf16", 32, 64.0, devices=4, loops=0, runs=1)
    assert found["reduce-scatter"] == Collective("reduce-scatter", "f32", 16, 128.0, devices=2, loops=0, runs=1)
    assert found["reduce-scatter"].sent == 128  # half of both arrays


def test_arguments_of_an_operation_that_a_compiler_for_gpus_starts_are_not_counted():
    start = "  %r = ((f32[4,8]{1,0}), f32[2,8]{1,0}) reduce-scatter-start(%a), channel_id=1, replica_groups=[2,2]<=[4]"
    text = "\n".join(["ENTRY %main (a: f32[4,8]) -> f32[2,8] {", start, "}"])
    assert collectives(text) == [Collective("reduce-scatter", "f32", 16, 64.0, devices=2, loops=0, runs=1)]
