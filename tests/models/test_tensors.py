"""Tensors of files are read one by one, and weights are placed shard by shard."""

import dataclasses
import weakref

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from instructjax.models import huggingface
from instructjax.models.tensors import FileTensor, ShardedWeight, first_rows
from instructjax.models.transformer import LanguageModel
from tests import fakes

VALUES = np.arange(4 * 8 * 6, dtype=np.float32).reshape(4, 8, 6)


def counted(values, reads):
    """Returns a tensor of a file, which adds a weak reference to each array that it gives to `reads`."""

    def read():
        found = np.array(values)
        reads.append(weakref.ref(found))
        return found

    return FileTensor(values.shape, values.dtype, read)


@pytest.mark.parametrize(
    "spec", [P(), P(None, "a"), P(None, "a", "b"), P("a", None, "b"), P(None, ("a", "b"))], ids=str
)
def test_a_weight_is_filled_layer_by_layer_and_sharded(spec):
    mesh = jax.make_mesh((2, 4), ("b", "a"), axis_types=(AxisType.Auto,) * 2)
    sharding = NamedSharding(mesh, spec)
    weight = ShardedWeight(jax.ShapeDtypeStruct(VALUES.shape, np.float32, sharding=sharding))
    for layer, values in enumerate(VALUES.astype(np.float64)):
        weight.fill(values, layer)
    found = weight.place()
    assert found.sharding == sharding and found.dtype == np.float32
    np.testing.assert_array_equal(found, VALUES)


def test_without_a_sharding_a_weight_is_on_the_default_device():
    weight = ShardedWeight(jax.ShapeDtypeStruct(VALUES.shape, np.float32))
    weight.fill(VALUES)
    found = weight.place()
    assert found.devices() == {jax.devices()[0]} and not found.committed
    np.testing.assert_array_equal(found, VALUES)


def test_a_tensor_is_read_when_its_values_are_needed():
    reads = []
    rows = first_rows(counted(VALUES, reads), 3)
    assert (rows.shape, rows.dtype, rows.ndim) == ((3, 8, 6), np.float32, 3) and not reads
    np.testing.assert_array_equal(np.asarray(rows, np.float64), VALUES[:3])
    assert len(reads) == 1


def test_an_import_reads_each_tensor_once_and_keeps_none():
    config = dataclasses.replace(fakes.CONFIG, num_layers=4, tied=False)
    params, reads, held = fakes.params(LanguageModel(config)), [], []

    def noted(tensor):
        def read():
            held.append(sum(found() is not None for found in reads))
            return tensor.read()

        return dataclasses.replace(tensor, read=read)

    expected = huggingface.tensors_of(params, config)
    tensors = {name: noted(counted(values, reads)) for name, values in expected.items()}
    found = huggingface.params_of(tensors, config)
    jax.tree.map(np.testing.assert_array_equal, found, params)
    assert len(reads) == len(tensors)
    assert max(held) <= 1  # the one before, while the next is read
