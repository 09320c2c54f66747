"""Similarity of updates by its definitions, on materialised matrices.

Entropies as in Zhou et al., 2025, appendix A.2, and the published code: flatten, covariance, log det. Linear CKA as in
Kornblith et al., 2019, eq. 3, with the Gram matrices of the examples.

Shapes: X and Y [out, in].
"""

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]


def entropy(X: Matrix) -> float:
    covariance = np.atleast_2d(np.cov(X.reshape(-1, 1), rowvar=False))
    (n, _) = covariance.shape
    return float(0.5 * np.log((2 * np.pi * np.e) ** n * np.linalg.det(covariance)))


def joint_entropy(X: Matrix, Y: Matrix) -> float:
    return entropy(np.concatenate([X.flatten(), Y.flatten()]))


def relative_mutual_information(X: Matrix, Y: Matrix) -> float:
    mutual = entropy(X) + entropy(Y) - joint_entropy(X, Y)
    return mutual / min(entropy(X), entropy(Y))


def cosine(X: Matrix, Y: Matrix) -> float:
    x, y = X.flatten(), Y.flatten()
    return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))


def distance(X: Matrix, Y: Matrix) -> float:
    return float(np.linalg.norm(X - Y))


def linear_cka(X: Matrix, Y: Matrix) -> float:
    """The columns are the examples."""
    n = X.shape[1]
    centring = np.eye(n) - np.ones((n, n)) / n
    K, L = (centring @ M.T @ M @ centring for M in (X, Y))
    return float((K * L).sum() / np.linalg.norm(K) / np.linalg.norm(L))
