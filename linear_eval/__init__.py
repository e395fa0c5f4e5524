"""Evaluation of representations: kNN, linear probes, fine-tuning and collapse measures.

The package is independent of the encoder's training. Accuracies are in percent, 0 to 100.
"""

from linear_eval.baselines import majority_metrics, pixel_features
from linear_eval.by_client import ClientScores, evaluate_by_client
from linear_eval.evaluate import ClassifierReport, EvaluationReport, EvaluationSettings, evaluate_features
from linear_eval.evaluation_details import EncoderDetails, EvaluationDetails
from linear_eval.features import Features, feature_std, linear_cka, rankme
from linear_eval.finetune import FinetuneSettings, finetune
from linear_eval.intervals import is_above, wilson
from linear_eval.knn import knn_predict
from linear_eval.metrics import ClassificationMetrics, Perplexity, classification_metrics, macro_auroc
from linear_eval.module import EvaluatedModule
from linear_eval.ngram import ngram_perplexity
from linear_eval.probe import LogisticProbe, SGDProbe
from linear_eval.timm_encoder import TimmEncoder

__all__ = [
    "ClassificationMetrics",
    "ClassifierReport",
    "ClientScores",
    "EncoderDetails",
    "EvaluatedModule",
    "EvaluationDetails",
    "EvaluationReport",
    "EvaluationSettings",
    "Features",
    "FinetuneSettings",
    "LogisticProbe",
    "Perplexity",
    "SGDProbe",
    "TimmEncoder",
    "classification_metrics",
    "evaluate_by_client",
    "evaluate_features",
    "feature_std",
    "finetune",
    "is_above",
    "knn_predict",
    "linear_cka",
    "macro_auroc",
    "majority_metrics",
    "ngram_perplexity",
    "pixel_features",
    "rankme",
    "wilson",
]
