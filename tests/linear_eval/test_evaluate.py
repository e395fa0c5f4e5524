import json
from dataclasses import replace

import pytest
import torch

from linear_eval import (
    EvaluationSettings,
    Features,
    LogisticProbe,
    SGDProbe,
    evaluate_features,
    feature_std,
    rankme,
)
from linear_eval.evaluate import LOGISTIC_MAX_IMAGES, choose_probe, knn_report

SETTINGS = EvaluationSettings()


def clusters(images: int, spread: float, seed: int) -> Features:
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(images) % 3
    return Features(4 * torch.eye(6)[y] + spread * torch.randn(images, 6, generator=generator), y)


def test_report_on_separable_features() -> None:
    train, test = clusters(90, 0.3, 0), clusters(45, 0.3, 1)
    report = evaluate_features(train, test, 3, SETTINGS)
    flat = report.as_dict()
    assert json.loads(json.dumps(flat)) == flat
    assert flat["knn_top1"] == flat["linear_top1"] == flat["linear_f1"] == 100.0
    assert flat["feature_std"] == feature_std(test.x)
    assert flat["rankme"] == rankme(test.x)
    assert (report.feature_dim, report.train_images, report.test_images) == (6, 90, 45)
    assert (report.probe, report.probe_regularization) == (
        "logistic",
        LogisticProbe().fit(train).regularization,
    )
    classifiers = {
        f"{name}_{key}" for name in ("knn", "knn_centred", "linear") for key in ("top1", "mean_per_class", "f1")
    }
    assert set(flat) == classifiers | {
        *("linear_precision", "linear_recall", "linear_auroc"),
        *("feature_std", "rankme", "rankme_centred", "feature_dim"),
        *("train_images", "test_images", "probe", "probe_regularization"),
    }


def test_centred_measures_are_those_of_features_less_the_mean_of_the_bank() -> None:
    train, test = clusters(60, 3.0, 0), clusters(30, 3.0, 1)
    far = torch.full((6,), 100.0)
    mean = (train.x + far).mean(dim=0)
    moved = knn_report(Features(train.x + far, train.y), Features(test.x + far, test.y), 3, SETTINGS)
    centred = knn_report(train.shifted(mean - far), test.shifted(mean - far), 3, SETTINGS)
    assert moved["knn_centred_top1"] == centred["knn_top1"]
    assert moved["rankme_centred"] == pytest.approx(centred["rankme"], rel=1e-4)
    assert moved["rankme"] < 2


def test_the_full_bank_votes_and_teaches_the_probe_nothing() -> None:
    whole, test = clusters(60, 3.0, 0), clusters(30, 3.0, 1)
    few, rest = whole.select(torch.arange(20)), whole.select(torch.arange(20, 60))
    report, all_of_it = evaluate_features(few, test, 3, SETTINGS, rest), evaluate_features(whole, test, 3, SETTINGS)
    assert (report.knn_full, report.knn_full_centred) == (all_of_it.knn, all_of_it.knn_centred)
    assert report.as_dict().items() >= evaluate_features(few, test, 3, SETTINGS).as_dict().items()


@pytest.mark.parametrize("probe", ["logistic", "sgd"])
def test_test_labels_reach_nothing_but_the_metrics(probe: str) -> None:
    settings = replace(SETTINGS, probe=probe)
    train, test = clusters(60, 3.0, 0), clusters(30, 3.0, 1)
    honest = evaluate_features(train, test, 3, settings)
    fooled = evaluate_features(train, Features(test.x, (test.y + 1) % 3), 3, settings)
    assert honest.probe_regularization == fooled.probe_regularization
    for name in ("knn", "linear"):
        columns = [
            [sum(column) for column in zip(*getattr(report, name).confusion, strict=True)]
            for report in (honest, fooled)
        ]
        assert columns[0] == columns[1]  # the same images are predicted as each class
        assert getattr(honest, name) != getattr(fooled, name)


def test_auto_takes_the_probe_by_size_and_hands_on_the_seed() -> None:
    settings = EvaluationSettings(probe_seed=7)
    assert choose_probe(settings, LOGISTIC_MAX_IMAGES) == LogisticProbe(seed=7)
    assert choose_probe(settings, LOGISTIC_MAX_IMAGES + 1) == SGDProbe(seed=7)
    assert choose_probe(replace(settings, probe="sgd"), 1) == SGDProbe(seed=7)
    assert choose_probe(replace(settings, probe="logistic"), 10**9) == LogisticProbe(seed=7)


def test_settings_of_knn_are_used() -> None:
    bank = Features(torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.8, 0.6]]), torch.tensor([0, 1, 1]))
    query = Features(torch.tensor([[1.0, 0.1]]), torch.tensor([0]))
    for settings, expected in [
        (EvaluationSettings(knn_k=1), 100.0),
        (EvaluationSettings(knn_k=3, knn_temperature=10.0), 0.0),
    ]:
        assert knn_report(bank, query, 2, settings)["knn_top1"] == expected


def test_knn_report_agrees_with_the_whole_report() -> None:
    train, test = clusters(60, 3.0, 0), clusters(30, 3.0, 1)
    cheap, full = knn_report(train, test, 3, SETTINGS), evaluate_features(train, test, 3, SETTINGS).as_dict()
    assert set(cheap) == {"knn_top1", "knn_centred_top1", "feature_std", "rankme", "rankme_centred"}
    assert all(cheap[key] == full[key] for key in cheap)


def test_collapsed_features_are_reported_not_refused() -> None:
    collapsed = Features(torch.full((30, 4), 0.1), torch.arange(30) % 3)
    report = evaluate_features(collapsed, collapsed, 3, SETTINGS)
    assert report.linear.accuracy == pytest.approx(100 / 3)
    assert report.feature_std == pytest.approx(0.0, abs=1e-9)
    assert report.rankme == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"knn_k": 0}, "knn_k must be 1 or more, got 0"),
        ({"knn_temperature": -1.0}, "knn_temperature must be above 0"),
        ({"probe": "svm"}, "auto, logistic, sgd, got 'svm'"),
    ],
)
def test_settings_refuse(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EvaluationSettings(**change)  # type: ignore[arg-type]


def test_refuses_other_widths_and_labels_out_of_range() -> None:
    train = clusters(30, 1.0, 0)
    for function in (evaluate_features, knn_report):
        with pytest.raises(ValueError, match=r"\(M, 6\)|\(M, 5\)|\(30, 5\)"):
            function(train, Features(train.x[:, :5], train.y), 3, SETTINGS)
        with pytest.raises(ValueError, match="labels must be below num_classes = 2, got 2"):
            function(train, train, 2, SETTINGS)
        with pytest.raises(ValueError, match=r"target must be within 0\.\.2, got 2\.\.4"):
            function(train, Features(train.x, train.y + 2), 3, SETTINGS)
