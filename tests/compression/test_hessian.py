"""Second moments gathered in parts, and the factor of their inverse."""

import numpy as np
import pytest
import torch

from compressor.errors import BadCalibrationError
from compressor.numbers import hessian
from compressor.numbers.hessian import Hessian, inverse_factor, output_error
from small_blocks import inputs, moments, relative_error, weights


@pytest.mark.parametrize("parts", [[512], [1, 511], [100, 0, 400, 12]])
def test_parts_add_up_to_the_moments_of_all_tokens(parts: list[int]) -> None:
    x_TI = inputs()
    gathered = Hessian(64)
    for part in x_TI.split(parts):
        gathered.add(part)
    torch.testing.assert_close(gathered.matrix, moments(x_TI), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gathered.diagonal_mean_square, x_TI.square().mean(0), rtol=1e-12, atol=1e-12)
    assert gathered.tokens == 512


def test_tiles_of_a_wide_input_make_the_whole_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hessian, "_TILE", 24)
    x_TI = inputs()
    gathered = Hessian(64)
    gathered.add(x_TI)
    torch.testing.assert_close(gathered.matrix, moments(x_TI), rtol=1e-12, atol=1e-12)
    assert torch.equal(gathered.matrix, gathered.matrix.T)


def test_the_factor_is_the_upper_cholesky_factor_of_the_inverse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hessian, "_TILE", 10)
    h_II = moments(inputs())
    u_II, dead_I, used = inverse_factor(h_II, 0.01)
    damped = h_II.numpy() + 0.01 * np.mean(np.diag(h_II.numpy())) * np.eye(64)
    expected = np.linalg.cholesky(np.linalg.inv(damped)).T
    np.testing.assert_allclose(u_II.numpy(), expected, rtol=1e-8, atol=1e-10)
    assert not dead_I.any()
    assert used == 0.01


def test_a_dead_input_is_found_and_leaves_the_others_alone() -> None:
    x_TI = inputs()
    x_TI[:, 5] = 0
    u_II, dead_I, _ = inverse_factor(moments(x_TI), 0.01)
    assert dead_I.nonzero().flatten().tolist() == [5]
    assert int(torch.count_nonzero(u_II[5])) == 1
    assert int(torch.count_nonzero(u_II[:, 5])) == 1


def test_damping_grows_tenfold_until_the_moments_can_be_factored() -> None:
    h_II = moments(inputs())
    h_II -= 0.05 * h_II.diagonal().mean() * torch.eye(64, dtype=torch.float64)
    u_II, _, used = inverse_factor(h_II, 0.001)
    assert used == pytest.approx(0.1)
    damped = h_II + 0.1 * h_II.diagonal().mean() * torch.eye(64, dtype=torch.float64)
    torch.testing.assert_close(u_II.T @ u_II, torch.linalg.inv(damped), rtol=1e-8, atol=1e-10)


def test_too_few_tokens_for_float32_are_enough_for_float64() -> None:
    x_TI = (inputs(tokens=8) * 4).round().float()
    h_II = x_TI.T @ x_TI
    damped = h_II + 1e-8 * h_II.diagonal().mean() * torch.eye(64)
    assert int(torch.linalg.cholesky_ex(damped.flip(0, 1))[1]) > 0
    u_II, _, used = inverse_factor(h_II, 1e-8)
    assert used == 1e-8
    assert bool(u_II.isfinite().all())
    assert u_II.dtype == torch.float32


def test_moments_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(BadCalibrationError, match="no finite second moments"):
        inverse_factor(torch.full((4, 4), torch.nan), 0.01)


def test_a_linear_that_no_token_reached_is_refused() -> None:
    with pytest.raises(BadCalibrationError, match="no calibration token"):
        _ = Hessian(4).matrix


def test_the_output_error_is_that_of_the_outputs() -> None:
    w_OI, x_TI = weights(), inputs()
    other_OI = w_OI + 0.1 * weights(9)
    expected = float(((x_TI @ (w_OI - other_OI).T) ** 2).sum() / ((x_TI @ w_OI.T) ** 2).sum())
    assert output_error(w_OI, other_OI, moments(x_TI)) == pytest.approx(expected, rel=1e-10)
    assert relative_error(w_OI, other_OI, moments(x_TI)) == pytest.approx(expected, rel=1e-10)


def test_the_output_error_of_many_rows_is_estimated_from_evenly_spaced_ones() -> None:
    w_OI, h_II = weights(outputs=3000), moments(inputs())
    other_OI = w_OI + 0.1 * weights(9, outputs=3000)
    assert output_error(w_OI, other_OI, h_II) == pytest.approx(relative_error(w_OI, other_OI, h_II), rel=0.1)
