"""The temperature that suits a network's logits."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

from gender_batch.training.predict import USUAL_TEMPERATURE, fit_temperature


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_that_spoiled_the_logits_is_found(temperature: float) -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(0, 2, (20_000, 3))
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    truth = (probabilities.cumsum(1) > generator.random((len(logits), 1))).argmax(1)
    found = fit_temperature((logits * temperature).astype(np.float32), truth)
    assert found == pytest.approx(temperature, rel=0.05)


@pytest.mark.parametrize("margin", [0.5, 3, 9, 30])
@pytest.mark.parametrize("right", [True, False])
def test_a_handful_of_pictures_makes_a_network_neither_certain_nor_clueless(margin: float, right: bool) -> None:
    """Alone they would have it that no temperature is low, or high, enough."""
    logits = np.array([[margin, 0], [0, margin]] * 5, np.float32)
    found = fit_temperature(logits, np.array([0, 1] * 5) if right else np.array([1, 0] * 5))
    assert 0.5 < found < USUAL_TEMPERATURE + 1e-6 if right else USUAL_TEMPERATURE < found < 100
