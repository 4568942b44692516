"""Parity of the optimizer with torch."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from instructjax.training import optimizer

pytestmark = pytest.mark.parity
STEPS, RATE, DECAY = 50, 0.02, 0.1
KEYS = ml_collections.ConfigDict(
    {"beta1": 0.9, "beta2": 0.95, "epsilon": 1e-8, "clip_norm": 1.0, "first_moment_dtype": ""}
)


@pytest.mark.parametrize("decay", [0.0, DECAY])
def test_adam_with_cosine_decay_and_clipping(decay, capsys):
    """Makes 50 updates of a small network, with gradients above and below the norm to which they are clipped."""
    torch = pytest.importorskip("torch", reason="needs the extra parity")
    rng = np.random.default_rng(0)
    start = {"kernel": rng.normal(size=(5, 7)), "bias": 0.5 * rng.normal(size=7)}
    inputs, targets = rng.normal(size=(STEPS, 8, 5)), 0.5 * rng.normal(size=(STEPS, 8))

    theirs = {name: torch.tensor(value, requires_grad=True) for name, value in start.items()}
    groups = [{"params": [theirs["kernel"]], "weight_decay": decay}, {"params": [theirs["bias"]], "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.95), eps=1e-8)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, T_max=STEPS, eta_min=0.1 * RATE)
    norms = []
    for x, y in zip(inputs, targets, strict=True):
        adam.zero_grad()
        error = torch.tanh(torch.tensor(x) @ theirs["kernel"]) @ theirs["bias"] - torch.tensor(y)
        (error**2).mean().backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(theirs.values(), 1.0)))
        adam.step()
        schedule.step()
    assert min(norms) < 1 < max(norms)

    with jax.enable_x64(True):
        ours = jax.tree.map(jnp.asarray, start)
        update = optimizer.adam(KEYS, optimizer.cosine_schedule(RATE, STEPS, final_fraction=0.1), decay)
        state = update.init(ours)

        @jax.jit
        def step(params, state, x, y):
            loss = lambda p: jnp.mean((jnp.tanh(x @ p["kernel"]) @ p["bias"] - y) ** 2)  # noqa: E731
            updates, state = update.update(jax.grad(loss)(params), state, params)
            return optax.apply_updates(params, updates), state

        for x, y in zip(inputs, targets, strict=True):
            ours, state = step(ours, state, x, y)
        errors = [float(np.abs(ours[name] - theirs[name].detach().numpy()).max()) for name in start]
    with capsys.disabled():
        print(f"\n  Adam, {STEPS} steps, decay {decay}: largest difference of a weight {max(errors):.1e}", end="")
    assert max(errors) < 1e-5  # torch adds 1e-6 to the norm by which it divides
