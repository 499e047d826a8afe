"""Cross-validated ridge regression for more features than samples.

Standardised features enter through their Gram matrix alone (N x N, float64), so the cost grows with the number
of features once, and the penalty is chosen without a second loop by the closed form of leave-one-out.
With a team, ranks share the features first, and then the folds.
Letters: N samples, n training samples of a fold, F features, T targets.
"""

import torch
from torch import Tensor

from trainer.evaluation.team import Dealt

# Penalties as multiples of the number of features: the mean eigenvalue of a standardised Gram matrix.
RELATIVE_PENALTIES = tuple(10.0 ** (exponent / 2) for exponent in range(-10, 5))
# Features standardised at a time: what is held in float64 beside the features themselves.
CHUNK = 4096


def out_of_fold(feature_NF: Tensor, target_NT: Tensor, fold_N: Tensor, dealt: Dealt | None = None) -> Tensor:
    """Predictions [N, T], float64: each sample's by a fit that saw none of its fold, on the features' device.

    Mean, deviation and penalty come from the training folds, so nothing of a test fold leaks into its fit.
    `dealt`: each rank of its team calls this, with the features of its own samples and with all targets and folds.
    """
    dealt = dealt or Dealt(len(feature_NF))
    team, device = dealt.team, feature_NF.device
    target_NT = target_NT.to(device, torch.float64)
    train_KN = torch.stack([fold_N != fold for fold in fold_N.unique()]).to(device)
    guess_NT = torch.zeros_like(target_NT)
    grams = _standardised_grams(feature_NF, train_KN, dealt)
    for number, (train_N, mine_Nn) in enumerate(zip(train_KN, grams, strict=True)):
        gram_Nn = team.sum(mine_Nn)
        if number % team.size == team.rank:
            mean_T = target_NT[train_N].mean(dim=0)
            weight_nT = fit(gram_Nn[train_N], target_NT[train_N] - mean_T, feature_NF.shape[1])
            guess_NT[~train_N] = gram_Nn[~train_N] @ weight_nT + mean_T
    return team.sum(guess_NT)


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


def _standardised_grams(feature_nF: Tensor, train_KN: Tensor, dealt: Dealt) -> list[Tensor]:
    """Of each fold this rank's part of the products [N, n] of all samples with the training samples.

    A feature that never varies among those counts nothing.
    """
    grams = [train_N.new_zeros(len(train_N), int(train_N.sum()), dtype=torch.float64) for train_N in train_KN]
    for part_NC in dealt.my_columns(feature_nF, CHUNK):
        chunk_NC = part_NC.double()
        for gram_Nn, train_N in zip(grams, train_KN, strict=True):
            deviation_C, mean_C = torch.std_mean(chunk_NC[train_N], dim=0, correction=0)
            standard_NC = (chunk_NC - mean_C) / deviation_C.masked_fill(deviation_C < 1e-12, torch.inf)
            gram_Nn.add_(standard_NC @ standard_NC[train_N].T)
    return grams
