"""Every public gradient kernel as a function of some rows: what it says of each, or their sums."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import tap_oracle as oracle
from ekfac_oracle import conv, dense_loss, fitted
from jaxpoison import kernels
from jaxpoison.linalg.ekfac import invert_ekfac

ROWS, QUERIES, CLASSES = 23, 4, 3
KEY = jax.random.key(5)


def image_loss(params, x, y):
    hidden = jnp.tanh(conv(x, params["kernel"]) + params["bias"])
    pooled = jax.lax.reduce_window(
        hidden, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"
    )
    return oracle.cross_entropy(pooled.reshape(len(x), -1) @ params["head"], y)


def image_case():
    params = {"kernel": oracle.normal(1, 3, 3, 2, 4), "bias": oracle.normal(2, 4)}
    params["head"] = oracle.normal(3, 36, CLASSES)
    x = oracle.normal(4, ROWS + QUERIES, 6, 6, 2, scale=1.0)
    return image_loss, params, (x, np.arange(len(x)) % CLASSES)


def sequence_case():
    params = {"w": oracle.normal(1, 5, 6), "b": oracle.normal(2, 6), "v": oracle.normal(3, 6, 3)}
    x = oracle.normal(4, ROWS + QUERIES, 4, 5, scale=1.0)
    return dense_loss, params, (x, np.arange(len(x)) % CLASSES)


def flat_case():
    return oracle.mlp_case(rows=ROWS + QUERIES)


CASES = {"images": image_case, "sequences": sequence_case, "rows": flat_case}


class Kernels:
    """The kernels on one case; ``of_rows`` gives an array for each name, rows first."""

    def __init__(self, name):
        self.loss, self.params, whole = CASES[name]()
        self.batch = jax.tree.map(lambda x: x[:ROWS], whole)
        self.queries = jax.tree.map(lambda x: x[ROWS:], whole)
        self.inverse = invert_ekfac(fitted((self.loss, self.params, self.batch))).inverse
        size = ravel_pytree(self.params)[0].size
        self.vectors = oracle.normal(7, 2, size)

    def of_rows(self, batch, mask=None, chunk=None):
        loss, params, queries = self.loss, self.params, self.queries
        knobs = {"chunk": chunk}
        rates = {"learning_rates": [0.5, 0.25]}
        checkpoints = [params, jax.tree.map(lambda x: 0.9 * x, params)]
        norms = kernels.gradient_norms(loss, params, batch, mask, per_layer=True, **knobs)
        whole = kernels.per_sample_gradients(loss, params, batch, mask, **knobs)
        flat = jnp.concatenate([g.reshape(len(g), -1) for g in jax.tree.leaves(whole)], axis=1)
        taps = kernels.collect_taps(loss, params, batch, mask)
        found = {
            "gradient_norms": norms.norms,
            "layers": norms.layers,
            "losses": norms.losses,
            "per_sample_gradients": flat,
            "squares": kernels.layer_squared_norms(taps),
            "grad_dot": kernels.grad_dot(loss, params, batch, queries, mask, **knobs).scores,
            "tracin": kernels.tracin(
                loss, checkpoints, batch, queries, mask, **rates, **knobs
            ).scores,
            "tracin_self": kernels.tracin_self(
                loss, checkpoints, batch, mask, **rates, **knobs
            ).scores,
            "ekfac_self_influence": kernels.ekfac_self_influence(
                loss, params, batch, mask, inverse=self.inverse, **knobs
            ).scores,
            "ekfac_influence": kernels.ekfac_influence(
                loss, params, batch, queries, mask, inverse=self.inverse, **knobs
            ).scores.T,
            "random_project": kernels.random_project(flat, num_features=8, key=KEY),
        }
        inputs = [(kernels.tap_inputs(tap), tap.cotangents) for tap in taps.layers]
        for n, pair in enumerate(inputs):
            found[f"kronecker_project {n}"] = kernels.kronecker_project(
                *pair, num_inputs=3, num_outputs=2, key=KEY
            )
            found[f"khatri_rao_project {n}"] = kernels.khatri_rao_project(
                *pair, num_features=6, key=KEY
            )
        ones = np.ones(len(norms.norms), np.float32) if mask is None else mask
        found["gradient_products"] = kernels.gradient_products(
            params, batch, ones, self.vectors, row_loss_fn=loss
        ).T
        return {name: np.asarray(value) for name, value in found.items()}

    def sums(self, batch, mask=None, chunk=None):
        knobs = {"chunk": chunk}
        moments = kernels.ekfac_moments(self.loss, self.params, batch, mask, **knobs)
        eigenvalues = kernels.ekfac_eigenvalues(
            self.loss, self.params, batch, mask, basis=self.inverse.basis, **knobs
        )
        flat = self.of_rows(batch, mask)["random_project"]
        ones = np.ones(len(flat), np.float32) if mask is None else mask
        parts = {"moments": moments, "eigenvalues": eigenvalues}
        parts["feature_gram"] = kernels.feature_gram(flat, ones)
        return {
            f"{name} {n}": np.asarray(leaf)
            for name, part in parts.items()
            for n, leaf in enumerate(jax.tree.leaves(part))
        }


def everything(name):
    """Both, as {name: array}."""
    table = Kernels(name)
    return table.of_rows(table.batch) | table.sums(table.batch)
