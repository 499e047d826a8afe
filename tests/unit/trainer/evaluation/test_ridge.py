"""Dual ridge with closed leave-one-out against scikit-learn's RidgeCV."""

import numpy as np
import torch
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from trainer.evaluation import ridge


def test_out_of_fold_predictions_equal_scikit_learns() -> None:
    rng = torch.Generator().manual_seed(0)
    feature_NF = torch.randn(60, 5000, generator=rng) @ torch.diag(torch.rand(5000, generator=rng) * 10)
    feature_NF[:, 7] = 3.0  # never varies
    target_NT = feature_NF[:, :3].double() @ torch.randn(3, 4, generator=rng).double() + 100
    fold_N = torch.arange(60) % 5
    found = ridge.out_of_fold(feature_NF, target_NT, fold_N)
    expected = np.empty((60, 4))
    for fold in range(5):
        train, test = (fold_N != fold).numpy(), (fold_N == fold).numpy()
        penalties = [relative * feature_NF.shape[1] for relative in ridge.RELATIVE_PENALTIES]
        model = make_pipeline(StandardScaler(), RidgeCV(penalties)).fit(
            feature_NF.double().numpy()[train], target_NT.numpy()[train]
        )
        expected[test] = model.predict(feature_NF.double().numpy()[test])
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)


def test_features_that_say_nothing_predict_the_mean_of_the_other_folds() -> None:
    target_NT = torch.tensor([[0.0], [2.0], [10.0]]).double()
    found = ridge.out_of_fold(torch.ones(3, 4), target_NT, torch.tensor([0, 1, 2]))
    torch.testing.assert_close(found, torch.tensor([[6.0], [5.0], [1.0]]).double())
