"""The shapes of signatures are checked in the tests, and only where functions are called."""

import dataclasses
import importlib
import inspect
import pathlib
import pkgutil

import jax
import jax.numpy as jnp
import jaxtyping
import pytest

import instructjax
from instructjax import losses
from instructjax.batch import Episodes
from instructjax.models import attention
from instructjax.models.transformer import LanguageModel
from instructjax.rollout import episode
from tests import fakes, shape_checks

B, R, V = 3, 4, 5


def modules():
    """Returns every module that is checked."""
    for module in pkgutil.walk_packages(instructjax.__path__, "instructjax."):
        if any(f"{module.name}.".startswith(f"{name}.") for name in shape_checks.CHECKED):
            yield importlib.import_module(module.name)


def test_the_package_is_typed():
    assert (pathlib.Path(instructjax.__file__).parent / "py.typed").is_file()


def is_checked(function):
    return "jaxtyping" in function.__code__.co_filename


def test_public_functions_are_checked_and_classes_are_not():
    for module in modules():
        own = [value for value in vars(module).values() if getattr(value, "__module__", None) == module.__name__]
        for function in filter(inspect.isfunction, own):
            public = not function.__name__.startswith("_")
            assert is_checked(function) == public, f"{module.__name__}.{function.__name__}"
        for kind in filter(dataclasses.is_dataclass, own):
            assert not is_checked(kind.__init__), f"{module.__name__}.{kind.__name__}"


@pytest.mark.parametrize("call", [
    lambda: losses.masked_sum(jnp.ones((B, R)), jnp.ones((B, 1))),
    lambda: losses.log_probs(jnp.ones((B, R, V)), jnp.ones((B, R))),  # tokens that are not integers
    lambda: losses.kl_rewards(jnp.ones((B, R)), *[jnp.ones((B, R))] * 3, 0.1),
    lambda: attention.branch_mask(jnp.ones((B, R), int), jnp.ones((B + 1, R), int)),
    lambda: episode.last_token(jnp.ones((B, R))),
])  # fmt: skip
def test_a_wrong_shape_or_dtype_raises(call):
    with pytest.raises(jaxtyping.TypeCheckError):
        call()


def test_a_wrong_shape_raises_in_a_method_of_a_model():
    model = LanguageModel(fakes.CONFIG)
    tokens = jnp.ones((B, R), jnp.int32)
    with pytest.raises(jaxtyping.TypeCheckError, match="segments"):
        jax.eval_shape(model.init, jax.random.key(0), tokens, tokens[:, 1:], tokens)


def test_checked_functions_can_be_traced():
    x, mask = jnp.ones((B, R)), jnp.ones((B, R))
    assert jax.eval_shape(losses.whiten, x, mask).shape == (B, R)
    assert jax.jit(jax.vmap(losses.gae, in_axes=(0, 0, 0, None, None)))(*[x[None]] * 3, 1.0, 0.95)[0].shape == (1, B, R)
    assert jax.grad(lambda x: losses.masked_sum(x, mask)[0])(x).shape == (B, R)


def test_pytrees_hold_what_is_not_an_array():
    """This is needed under `jax.eval_shape`, `jax.vmap` and `jax.tree.map`."""
    axes = Episodes(*[0] * len(dataclasses.fields(Episodes)))
    ids = jnp.ones((2, B, R), jnp.int32)
    episodes = Episodes(ids, ids, ids, ids.astype(jnp.float32), ids.astype(jnp.float32), ids[..., 0])
    assert jax.vmap(lambda rows: episode.ended(rows, 1), in_axes=(axes,))(episodes).shape == (2, B)
    assert jax.eval_shape(lambda rows: rows, episodes).tokens.shape == (2, B, R)
