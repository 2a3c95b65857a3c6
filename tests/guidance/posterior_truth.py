"""What posterior methods are on Gaussian data, from the table of formulas alone: numpy, dense matrices, VE coordinates.

Data N(μ, C), y = A x + N(0, R), τ = σ/α. Without y, x̂_0 = μ + J (x̄ − μ), J = C (C + τ²)⁻¹, and V = τ² J. A method adds
G e, e = y − A x̂_0. So x̂_0 given y is a x̄ + b.
"""

import numpy as np
from scipy.integrate import solve_ivp

from sde_toolkit.guidance import DDNM, JFPS, MMPS, SDA, TMPD, DiffPIR, PiGDM, SigmaDPS

GAMMA, STD, WEIGHT = 0.6, 0.8, 1.7
OTHER = np.array([[1.2, -0.3], [-0.3, 0.4]])  # a covariance that is not that of the data


def inverse(M):
    return np.linalg.inv(M)


GAINS = {
    "SigmaDPS": lambda V, A, R, tau: V @ A.T @ inverse(R),
    "SDA": lambda V, A, R, tau: V @ A.T @ inverse(R + GAMMA * tau**2 * np.eye(len(R))),
    "PiGDM": lambda V, A, R, tau: V @ A.T @ inverse(STD**2 * tau**2 / (STD**2 + tau**2) * A @ A.T + R),
    "TMPD": lambda V, A, R, tau: V @ A.T @ np.diag(1 / (np.maximum((A @ V @ A.T).sum(1), 0) + R.sum(1))),
    "MMPS": lambda V, A, R, tau: V @ A.T @ inverse(A @ V @ A.T + R),
    "JFPS": lambda V, A, R, tau: GAINS["MMPS"](tau**2 * OTHER @ inverse(OTHER + tau**2 * np.eye(2)), A, R, tau),
    "DiffPIR": lambda V, A, R, tau: A.T @ inverse(A @ A.T + WEIGHT / tau**2 * R),
    "DDNM": lambda V, A, R, tau: np.linalg.pinv(A),
}


def methods(torch_covariance):
    """The methods with the settings of the table. MMPS solves to round-off."""
    return {
        "SigmaDPS": SigmaDPS(),
        "SDA": SDA(GAMMA),
        "PiGDM": PiGDM(STD),
        "TMPD": TMPD(),
        "MMPS": MMPS(tolerance=0.0),
        "JFPS": JFPS(torch_covariance),
        "DiffPIR": DiffPIR(WEIGHT),
        "DDNM": DDNM(),
    }


def affine(gain, mu, C, A, R, y):
    """τ ↦ (a, b) of x̂_0 given y."""

    def at(tau):
        J = C @ inverse(C + tau**2 * np.eye(len(C)))
        G = gain(tau**2 * J, A, R, tau)
        kept = np.eye(len(C)) - G @ A
        return kept @ J, kept @ (mu - J @ mu) + G @ y

    return at


def moments(of_tau, eta, tau_start, tau_end, mean, covariance, rtol=1e-11):
    """Mean and covariance of x̄ at τ_end: dm/dlog τ = (1 + η²)(m − a m − b), and

    dv/dlog τ = (1 + η²) ((1 − a) v + v (1 − a)ᵀ) − 2 η² τ².
    """
    D = len(mean)

    def rate(log_tau, state):
        tau, m, v = np.exp(log_tau), state[:D], state[D:].reshape(D, D)
        a, b = of_tau(tau)
        left = (np.eye(D) - a) @ v
        change = (1 + eta**2) * (left + left.T) - 2 * eta**2 * tau**2 * np.eye(D)
        return np.concatenate([(1 + eta**2) * (m - a @ m - b), change.flatten()])

    start = np.concatenate([mean, covariance.flatten()])
    solved = solve_ivp(rate, np.log([tau_start, tau_end]), start, method="DOP853", rtol=rtol, atol=rtol / 100)
    return solved.y[:D, -1], solved.y[D:, -1].reshape(D, D)


def exact_posterior(mu, C, A, R, y):
    """Mean and covariance of x given y."""
    G = C @ A.T @ inverse(A @ C @ A.T + R)
    return mu + G @ (y - A @ mu), C - G @ A @ C
