"""The regression on what a decoder leaves, against closed forms and against what it says of its own error."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF

from cfm.integration.joint import regression
from cfm.integration.joint.regression import NOISE, WIDTH, Regression

Arrays = tuple[list[NDArray[np.float32]], NDArray[np.float64]]


def cells(n: int = 150, seed: int = 0) -> Arrays:
    """Inputs of two sizes, and two features that depend on both, with noise."""
    generator = np.random.default_rng(seed)
    first, second = generator.normal(size=(n, 3)), 40 * generator.normal(size=(n, 2)) + 7
    values = np.stack([np.sin(first[:, 0]) + second[:, 0] / 40, first[:, 1] * second[:, 1] / 40], axis=1)
    values += 0.3 * generator.normal(size=values.shape)
    return [first.astype(np.float32), second.astype(np.float32)], values


def scaled(found: Regression, blocks: list[NDArray[np.float32]]) -> NDArray[np.float64]:
    return ((np.hstack(blocks) - found.mean) * found.scale).astype(np.float64)


def test_it_is_the_gaussian_process_of_scikit_learn() -> None:
    blocks, values = cells()
    found = Regression.fit(blocks, values)
    kernel = RBF(length_scale=(2 * WIDTH) ** -0.5)
    exact = GaussianProcessRegressor(kernel, alpha=NOISE, optimizer=None).fit(scaled(found, blocks), values)
    new, _ = cells(40, seed=1)
    mean, deviation = exact.predict(scaled(found, new), return_std=True)
    guess, error = found.predict(new)
    np.testing.assert_allclose(guess, mean, atol=2e-5)
    np.testing.assert_allclose(error, np.sqrt(deviation**2 + NOISE) * found.spread, rtol=1e-4)
    assert guess.dtype == error.dtype == np.float32


def test_the_spread_comes_from_leaving_out_each_cell() -> None:
    blocks, values = cells(30)
    found = Regression.fit(blocks, values)
    x, kernel = scaled(found, blocks), RBF(length_scale=(2 * WIDTH) ** -0.5)
    squares = []
    for i in range(30):
        rest = np.arange(30) != i
        without = GaussianProcessRegressor(kernel, alpha=NOISE, optimizer=None).fit(x[rest], values[rest])
        mean, deviation = without.predict(x[[i]], return_std=True)
        squares.append((values[i] - mean[0]) ** 2 / (deviation.ravel()[0] ** 2 + NOISE))
    np.testing.assert_allclose(found.spread, np.sqrt(np.mean(squares, axis=0)), rtol=1e-4)


def test_it_knows_its_error() -> None:
    found = Regression.fit(*cells(300))
    new, truth = cells(1000, seed=1)
    guess, error = found.predict(new)
    assert 0.6 < (np.abs(guess - truth) < error).mean() < 0.8
    far = [block + 1000 for block in new]
    nothing, most = found.predict(far)
    np.testing.assert_allclose(nothing, 0, atol=1e-6)
    np.testing.assert_allclose(most, np.broadcast_to(np.sqrt(1 + NOISE) * found.spread, most.shape), rtol=1e-5)
    assert (error < most).all()


def test_a_block_counts_the_same_whatever_its_size() -> None:
    blocks, values = cells()
    new, _ = cells(20, seed=1)
    guess, _ = Regression.fit(blocks, values).predict(new)
    stretched, _ = Regression.fit([1000 * blocks[0], blocks[1]], values).predict([1000 * new[0], new[1]])
    np.testing.assert_allclose(stretched, guess, atol=1e-4)


def test_more_cells_than_anchors(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks, values = cells(600)
    new, truth = cells(500, seed=1)
    exact, _ = Regression.fit(blocks, values).predict(new)
    monkeypatch.setattr(regression, "MAX_ANCHORS", 150)
    found = Regression.fit(blocks, values)
    assert len(found.anchors) == 150
    guess, error = found.predict(new)
    first = [block[:150] for block in blocks]
    few, _ = Regression.fit(first, values[:150]).predict(new)
    # Cells beside the anchors are used too.
    assert np.square(guess - truth).mean() < np.square(few - truth).mean()
    assert np.square(guess - exact).mean() < 0.3 * np.square(few - exact).mean()
    assert 0.6 < (np.abs(guess - truth) < error).mean() < 0.8


def test_the_error_is_right_where_anchors_cannot_say_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """In 40 directions, few anchors leave much of a cell open, and that is no reason for wider errors."""
    monkeypatch.setattr(regression, "MAX_ANCHORS", 100)
    generator = np.random.default_rng(0)
    x = generator.normal(size=(3_000, 40)).astype(np.float32)
    values = np.stack([np.sin(x[:, 0]) + x[:, 1], x[:, 2] * x[:, 3]], axis=1) + 0.5 * generator.normal(size=(3_000, 2))
    guess, error = Regression.fit([x[:2_000]], values[:2_000]).predict([x[2_000:]])
    np.testing.assert_allclose(((values[2_000:] - guess) / error).std(axis=0), 1, atol=0.07)


def test_a_cell_is_the_same_alone_and_among_others(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Regression.fit(*cells())
    new, _ = cells(100, seed=1)
    guess, error = found.predict(new)
    alone = [found.predict([block[[i]] for block in new]) for i in range(100)]
    np.testing.assert_array_equal(np.concatenate([pair[0] for pair in alone]), guess)
    np.testing.assert_array_equal(np.concatenate([pair[1] for pair in alone]), error)
    monkeypatch.setattr(regression, "_AT_ONCE", 7)
    np.testing.assert_array_equal(found.predict(new)[0], guess)


def test_cells_that_are_one_and_the_same() -> None:
    blocks, values = cells(20)
    found = Regression.fit([np.repeat(block, 3, axis=0) for block in blocks], np.repeat(values, 3, axis=0))
    guess, error = found.predict(blocks)
    assert np.isfinite(guess).all()
    assert np.isfinite(error).all()
    constant = Regression.fit([np.zeros((25, 2), np.float32)], np.zeros((25, 1)))
    assert np.isfinite(constant.predict([np.zeros((2, 2), np.float32)])[0]).all()
