"""Cross-validated ridge regression for more features than samples.

Standardised features enter through their Gram matrix alone (N x N, float64), so the cost grows with the number
of features once, and the penalty is chosen without a second loop by the closed form of leave-one-out.
Letters: N samples, n training samples of a fold, F features, T targets.
"""

import torch
from torch import Tensor

# Penalties as multiples of the number of features: the mean eigenvalue of a standardised Gram matrix.
RELATIVE_PENALTIES = tuple(10.0 ** (exponent / 2) for exponent in range(-10, 5))
# Features standardised at a time: what is held in float64 beside the features themselves.
CHUNK = 4096


def out_of_fold(feature_NF: Tensor, target_NT: Tensor, fold_N: Tensor) -> Tensor:
    """Predictions [N, T], float64: each sample's by a fit that saw none of its fold, on the features' device.

    Mean, deviation and penalty come from the training folds, so nothing of a test fold leaks into its fit.
    """
    target_NT = target_NT.to(feature_NF.device, torch.float64)
    guess_NT = torch.empty_like(target_NT)
    for fold in fold_N.unique().tolist():
        train_N = (fold_N != fold).to(feature_NF.device)
        gram_Nn = _standardised_gram(feature_NF, train_N)
        mean_T = target_NT[train_N].mean(dim=0)
        weight_nT = fit(gram_Nn[train_N], target_NT[train_N] - mean_T, feature_NF.shape[1])
        guess_NT[~train_N] = gram_Nn[~train_N] @ weight_nT + mean_T
    return guess_NT


def fit(gram_nn: Tensor, target_nT: Tensor, num_features: int) -> Tensor:
    """Dual weights [n, T] for centred targets, with the penalty of least leave-one-out squared error."""
    values_n, vectors_nn = torch.linalg.eigh(gram_nn)
    rotated_nT = vectors_nn.T @ target_nT
    best, weight_nT = float("inf"), torch.zeros_like(target_nT)
    for penalty in (relative * num_features for relative in RELATIVE_PENALTIES):
        inverse_n = 1 / (values_n.clamp(min=0) + penalty)
        candidate_nT = vectors_nn @ (inverse_n[:, None] * rotated_nT)
        # Residuals over one minus leverage; 1/n is the leverage of the mean, which is fitted too.
        left_out_n = penalty * (vectors_nn.square() @ inverse_n) - 1 / len(values_n)
        error = float((penalty * candidate_nT / left_out_n[:, None]).square().mean())
        if error < best:
            best, weight_nT = error, candidate_nT
    return weight_nT


def _standardised_gram(feature_NF: Tensor, train_N: Tensor) -> Tensor:
    """Products [N, n] of all samples with the training samples; a feature that never varies there counts nothing."""
    gram_Nn = torch.zeros(len(feature_NF), int(train_N.sum()), dtype=torch.float64, device=feature_NF.device)
    for part_NC in feature_NF.split(CHUNK, dim=1):
        chunk_NC = part_NC.double()
        deviation_C, mean_C = torch.std_mean(chunk_NC[train_N], dim=0, correction=0)
        standard_NC = (chunk_NC - mean_C) / deviation_C.masked_fill(deviation_C < 1e-12, torch.inf)
        gram_Nn += standard_NC @ standard_NC[train_N].T
    return gram_Nn
