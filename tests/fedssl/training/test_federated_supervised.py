"""Supervised training in the federation and in one place."""

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pytorch_lightning import Callback, LightningModule, Trainer
from torch.optim import SGD

from fedssl.client.start import FedEMA, FedU
from fedssl.client.training_loop import shuffled_batches
from fedssl.data.datasets import ArrayImages, ImageSet
from fedssl.data.images import FederatedData, ImageData
from fedssl.runs.results import evaluation_results
from fedssl.server.calibration import Calibration
from fedssl.training.federated import FederatedSSL
from fedssl.training.pretraining import CentralizedSSL
from fedssl.utils.seeding import torch_generator
from layerwise import EncoderSpec, EndToEnd, LayerWise, Progressive
from linear_eval import EvaluationSettings
from linear_eval.metrics import classification_metrics
from ssl_methods import DigitsViews, Supervised
from ssl_methods.alignment import GlobalAlignment

pytestmark = [pytest.mark.filterwarnings(f"ignore:.*{text}.*") for text in ("LeafSpec", "transfer_batch_to_device")]
RESNET = EncoderSpec("resnet18", 8, 1, options={"channels": (4, 4, 8, 8)}, stem="small")
ENCODERS = {
    "linear": RESNET,
    "convolution": EncoderSpec("resnet18", 8, 1, options=RESNET.options, output="convolution", stem="small"),
}


@pytest.fixture
def make_module(vit_spec: EncoderSpec) -> Callable[..., FederatedSSL]:
    def make(num_classes: int = 10, **settings: Any) -> FederatedSSL:
        defaults: dict[str, Any] = {
            "encoder": vit_spec,
            "method": partial(Supervised, num_classes=num_classes),
            "augment": DigitsViews(),
            "optimizer": partial(SGD, lr=0.05),
            "scheme": LayerWise(),
            "rounds": 3,
            "batch_size": 8,
            "evaluation": EvaluationSettings(knn_k=5),
            "seed": 0,
        }
        return FederatedSSL(**defaults | settings)

    return make


class StopAfterOneRound(Callback):
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.should_stop = True


def trainer(epochs: int, **settings: Any) -> Trainer:
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return Trainer(**{"accelerator": "cpu", "num_sanity_val_steps": 0, "max_epochs": epochs} | quiet | settings)


def digits(**settings: Any) -> FederatedData:
    return FederatedData(**{"clients": 3, "train_images": 60, "seed": 0} | settings)


def relabelled(images: ImageSet, label: int) -> ArrayImages:
    labels = images.labels.clone()
    labels[0] = label
    return ArrayImages(images.name, images.gather(torch.arange(len(images))), labels, images.classes)


# --- training


@pytest.mark.filterwarnings("error:.*duplicate parameters.*")
def test_convolutions_that_stages_share_are_stepped_once(make_module: Callable[..., FederatedSSL]) -> None:
    """The global model after one round of one client is that client's."""
    module = make_module(encoder=ENCODERS["convolution"], rounds=4)
    results: list[Any] = []
    data = digits(clients=1)
    data.setup("fit")
    module.prepare(data)
    federation: Any = module.federation
    federation.on_client = lambda *_: results.append(copy.deepcopy(federation.client.model.parts))
    before = copy.deepcopy(module.model.parts)
    trainer(4, limit_val_batches=0, limit_train_batches=1, callbacks=[StopAfterOneRound()]).fit(module, datamodule=data)
    for name in ("stem", "block.0", "output.0", "head.classifier"):
        triples = (parts[name].parameters() for parts in (module.model.parts, results[0], before))
        for ours, clients, start in zip(*triples, strict=True):
            assert torch.allclose(ours, clients, rtol=0, atol=1e-6), name
            assert not torch.equal(ours, start), name


@pytest.mark.parametrize("scheme", [EndToEnd(), LayerWise(), Progressive()])
def test_one_client_equals_a_plain_loop(
    scheme: Any, make_world: Callable[..., Any], make_model: Callable[..., Any]
) -> None:
    """The global model after each round is that of an ordinary loop over the client's images."""
    world = make_world(scheme, sizes=(11,), method="Supervised", epochs=2)
    plain = make_model("Supervised")
    for round_ in range(3):
        stage = world.server.stage
        report = world.round()
        encoder, classifier = plain.encoder, plain.method.classifier
        names = plain.trained_names(stage)
        optimizer = SGD([p for name in names for p in plain.parts[name].parameters()], lr=0.01)
        views, shuffle = torch_generator(0, "augment", round_, 0), torch_generator(0, "shuffle", round_, 0)
        encoder.depth, losses = stage.depth, []
        for _ in range(2):
            for images, labels in shuffled_batches(world.clients[0], 4, shuffle):
                loss = F.cross_entropy(classifier(encoder(DigitsViews().first(images, views))), labels)
                losses.append(loss.item())
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        assert report.loss == pytest.approx(sum(losses) / len(losses), abs=1e-5)
        for name in plain.parts:
            pairs = zip(world.server.model.parts[name].parameters(), plain.parts[name].parameters(), strict=True)
            assert all(torch.allclose(ours, theirs, rtol=0, atol=1e-6) for ours, theirs in pairs), name


@pytest.mark.slow
def test_the_classifier_learns(make_module: Callable[..., FederatedSSL]) -> None:
    module = make_module(scheme=EndToEnd(), rounds=8, local_epochs=3, optimizer=partial(SGD, lr=0.1, momentum=0.9))
    run = trainer(8, check_val_every_n_epoch=8)
    run.fit(module, datamodule=digits(train_images=240))
    assert run.callback_metrics["eval/classifier_top1"] > 25
    assert run.callback_metrics["client/loss"] < 2.25


@pytest.mark.parametrize("output", ENCODERS)
def test_intermediate_stages_have_a_classifier_accuracy(output: str, make_module: Callable[..., FederatedSSL]) -> None:
    """Through the linear reshape or the convolutions that stand in for the missing stages."""
    module = make_module(encoder=ENCODERS[output], rounds=4)
    seen: list[tuple[int, float]] = []
    module.on_validation_end = lambda: seen.append(  # type: ignore[method-assign]
        (module.model.encoder.depth, float(module.trainer.callback_metrics["eval/classifier_top1"]))
    )
    data = digits()
    trainer(4).fit(module, datamodule=data)
    assert [depth for depth, _ in seen] == [1, 2, 3, 4]
    queries = data.val_dataloader()[1]
    module.eval()
    predicted, labels = [], []
    with torch.no_grad():
        for images, truth in queries:
            features = module.encoder(module.normalize(images))
            predicted.append(module.model.method.classifier(features).argmax(1))
            labels.append(truth)
    expected = classification_metrics(torch.cat(labels), torch.cat(predicted), 10).accuracy
    assert seen[-1][1] == pytest.approx(expected)


@pytest.mark.parametrize("output", ENCODERS)
def test_scores_of_an_intermediate_stage_pass_its_temporary_layers(output: str, make_world: Callable[..., Any]) -> None:
    world = make_world(LayerWise(), rounds=4, sizes=(4, 4), spec=ENCODERS[output], method="Supervised")
    world.run(2)
    model = world.server.model
    images = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    model.encoder.eval()
    with torch.no_grad():
        hidden = model.encoder.blocks[1](model.encoder.blocks[0](model.encoder.stem(images)))
        features = model.encoder.reshape[1](model.encoder.tail(model.encoder.outputs[1](hidden)))
        assert features.shape == (5, model.encoder.feature_dim)
        assert torch.equal(model.classify(images), model.method.classifier(features))


def test_self_supervised_methods_have_no_classifier_accuracy(
    make_module: Callable[..., FederatedSSL], methods: dict[str, Any]
) -> None:
    run = trainer(3, check_val_every_n_epoch=3)
    run.fit(make_module(method=methods["SimCLR"]), datamodule=digits())
    assert "eval/knn_top1" in run.callback_metrics
    assert "eval/classifier_top1" not in run.callback_metrics


def test_the_final_evaluation_reports_the_classifier(make_module: Callable[..., FederatedSSL]) -> None:
    module, data = make_module(), digits()
    trainer(3, limit_val_batches=0).fit(module, datamodule=data)
    run = trainer(3)
    run.test(module, datamodule=data, verbose=False)
    results = evaluation_results(module)
    assert results["classifier_top1"] == pytest.approx(run.callback_metrics["test/classifier_top1"].item())
    assert 0 <= results["classifier_mean_per_class"] <= 100
    assert {"linear_top1", "knn_top1"} <= results.keys()


def test_a_classifier_may_know_more_classes_than_the_data(make_module: Callable[..., FederatedSSL]) -> None:
    """Predictions of classes that the data lack are mistakes, not errors."""
    module = make_module(num_classes=50)
    with torch.no_grad():
        module.model.method.classifier.bias[49] = 100.0  # type: ignore[union-attr]
    run = trainer(3, limit_train_batches=0)
    run.validate(module, datamodule=digits(), verbose=False)
    assert run.callback_metrics["eval/classifier_top1"] == 0


@pytest.mark.slow
def test_centralised_training_is_supervised_too(vit_spec: EncoderSpec) -> None:
    module = CentralizedSSL(
        vit_spec,
        partial(Supervised, num_classes=10),
        DigitsViews(),
        partial(SGD, lr=0.1, momentum=0.9),
        evaluation=EvaluationSettings(knn_k=5),
        seed=0,
    )
    run = trainer(30, check_val_every_n_epoch=30)
    run.fit(module, datamodule=ImageData(train_images=200, batch_size=16, seed=0))
    assert run.callback_metrics["eval/classifier_top1"] > 40
    assert run.callback_metrics["train/loss"] < 2.1
    assert module.summary == {"scheme": "centralized", "method": "Supervised"}


# --- what is refused


def test_labels_must_be_below_the_number_of_classes(
    make_module: Callable[..., FederatedSSL], vit_spec: EncoderSpec
) -> None:
    message = r"labels up to 9: set model\.method\.num_classes to at least 10, it is 4"
    with pytest.raises(ValueError, match=message):
        trainer(3).fit(make_module(num_classes=4), datamodule=digits())
    central = CentralizedSSL(vit_spec, partial(Supervised, num_classes=4), DigitsViews(), partial(SGD, lr=0.1), seed=0)
    with pytest.raises(ValueError, match=message):
        trainer(3).fit(central, datamodule=ImageData(train_images=60, seed=0))


def test_unlabelled_images_are_refused(make_module: Callable[..., FederatedSSL]) -> None:
    data = digits()
    data.setup("fit")
    data.pool = relabelled(data.pool, -1)
    with pytest.raises(ValueError, match="supervised training needs a label for every image"):
        make_module().prepare(data)


@pytest.mark.parametrize(("label", "message"), [(-1, "needs a label for every image"), (10, "labels up to 10")])
def test_calibration_needs_labels_too(label: int, message: str, make_module: Callable[..., FederatedSSL]) -> None:
    data = digits(auxiliary_fraction=0.2)
    data.setup("fit")
    module = make_module(calibration=Calibration(batch_size=4))
    module.prepare(data)
    assert data.datasets.auxiliary is not None
    object.__setattr__(data.datasets, "auxiliary", relabelled(data.datasets.auxiliary, label))
    with pytest.raises(ValueError, match=message):
        module.prepare(data)


def test_alignment_has_no_views_to_compare(make_module: Callable[..., FederatedSSL]) -> None:
    with pytest.raises(ValueError, match="alignment compares views: Supervised has none, leave it out"):
        make_module(alignment=GlobalAlignment())


@pytest.mark.parametrize("rule", [FedU(), FedEMA()])
def test_start_rules_need_a_predictor(rule: Any, make_module: Callable[..., FederatedSSL]) -> None:
    with pytest.raises(ValueError, match=r"needs a method with a predictor, such as BYOL; the heads are \['head.cl"):
        make_module(start=rule)


def test_proximal_term_and_calibration_work_with_labels(make_world: Callable[..., Any]) -> None:
    world = make_world(method="Supervised", proximal=0.1, calibration=Calibration(batch_size=4))
    for report in world.run(3):
        assert math.isfinite(report.loss)
        assert report.calibration_loss is not None
        assert report.trained == (0, 1, 2)
