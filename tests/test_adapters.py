"""Each adapter against the equation of the codebase that calls it, in float64, and against the installed package."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor, nn

from ssl_heads import (
    BayesianGate,
    CLIPLoss,
    DeltaContrast,
    InfoNCELoss,
    NonNegProjection,
    NTXentLoss,
    OrthonormalAnchorRegression,
    SigLIPLoss,
    SpectralLoss,
    SupConLoss,
    TriFactorContrast,
    param_groups,
)
from ssl_heads.adapters import (
    Floor,
    GatedHead,
    HuggingFaceCLIP,
    MetricLearning,
    MoCoCriterion,
    OpenCLIP,
    SentenceTransformers,
    SoloLearnMoCo,
    SoloLearnSimCLR,
)
from tests.checks import assert_gradient_close

N, D = 6, 8


def unit(*shape: int) -> Tensor:
    return F.normalize(torch.rand(*shape), dim=-1)


def agree(actual: Callable[[Tensor], Tensor], literal: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """The value, and the gradient of the first argument, are those of the float64 transcription."""
    x, exact = x.detach().requires_grad_(), x.detach().double().requires_grad_()
    value, expected = actual(x), literal(exact)
    value.backward()
    expected.backward()
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    assert_gradient_close(x.grad, exact.grad, 1e-5)


# ----------------------------------------------------------------------------------------------------------- solo-learn
def literal_solo_simclr(z: Tensor, indexes: Tensor, temperature: float) -> Tensor:
    """solo-learn's current simclr_loss_func, row by row."""
    z = F.normalize(z, dim=1)
    losses = []
    for i in range(len(z)):
        others = [j for j in range(len(z)) if j != i]
        weight = {j: torch.exp(z[i] @ z[j] / temperature) for j in others}
        positive = torch.stack([weight[j] for j in others if indexes[j] == indexes[i]]).sum()
        negative = torch.stack([weight[j] for j in others if indexes[j] != indexes[i]]).sum()
        losses.append(-torch.log(positive / (positive + negative)))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("indexes", [torch.arange(N).repeat(2), torch.arange(4).repeat(3), torch.arange(12) % 5])
def test_solo_learn_s_own_equation_for_any_views_and_labels(indexes: Tensor) -> None:
    adapter = SoloLearnSimCLR(SupConLoss(multi_positive="in"))
    agree(
        lambda z: adapter(z, indexes=indexes, temperature=0.3),
        lambda z: literal_solo_simclr(z, indexes, 0.3),
        torch.rand(len(indexes), D),
    )


def test_two_views_of_each_sample_are_nt_xent() -> None:
    indexes = torch.randperm(100)[:N].repeat(2)
    adapter = SoloLearnSimCLR(NTXentLoss(temperature=0.9))
    agree(lambda z: adapter(z, indexes, 0.3), lambda z: literal_solo_simclr(z, indexes, 0.3), torch.randn(2 * N, D))


def test_equal_indexes_are_never_negatives_of_nt_xent() -> None:
    z, twice = torch.randn(2 * N, D), torch.tensor([0, 0, 1, 2, 3, 4]).repeat(2)
    expected = NTXentLoss(0.3)(z[:N], z[N:], twice[:N])
    torch.testing.assert_close(SoloLearnSimCLR(NTXentLoss())(z, twice, 0.3), expected)
    assert SoloLearnSimCLR(NTXentLoss())(z, torch.arange(N).repeat(2), 0.3) > expected


@pytest.mark.parametrize("loss", [NTXentLoss(0.7), TriFactorContrast(D, temperature=0.7), SupConLoss(0.7)])
def test_the_temperature_of_the_call_counts_and_the_loss_keeps_its_own(loss: nn.Module) -> None:
    z, indexes = torch.randn(2 * N, D), torch.arange(N).repeat(2)
    values = [float(SoloLearnSimCLR(loss)(z, indexes, temperature).detach()) for temperature in (0.2, 0.7)]
    own = loss(z, indexes) if isinstance(loss, SupConLoss) else loss(z[:N], z[N:])
    assert values[1] == pytest.approx(own.item(), rel=1e-6)
    assert abs(values[0] - values[1]) > 0.1
    with pytest.raises(ValueError, match="temperature must be a finite number above 0, got -1"):
        SoloLearnSimCLR(loss)(z, indexes, -1)
    assert loss.temperature == 0.7


@pytest.mark.parametrize("loss", [SpectralLoss(), DeltaContrast(), TriFactorContrast(D, kind="spectral")])
def test_a_temperature_that_nothing_would_use_is_refused(loss: nn.Module) -> None:
    with pytest.raises(ValueError, match=f"{type(loss).__name__} has no temperature.*write `lambda z"):
        SoloLearnSimCLR(loss)


def test_what_is_not_two_views_is_refused() -> None:
    adapter = SoloLearnSimCLR(NTXentLoss())
    with pytest.raises(ValueError, match=r"two rows of each sample, got z of shape \(9, 8\).*SupConLoss"):
        adapter(torch.randn(9, D), torch.arange(3).repeat(3))
    with pytest.raises(ValueError, match=r"equal row by row.*at row 0 they are 0 and 6"):
        adapter(torch.randn(12, D), torch.arange(12))
    with pytest.raises(ValueError, match=r"indexes must hold one integer for each row of z: expected shape \(12,\)"):
        adapter(torch.randn(12, D), torch.arange(6))


def literal_moco_logits(query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """The end of the forward pass of moco's builder, and of solo-learn's loss: the queue is (d, K)."""
    positive = torch.einsum("nc,nc->n", [query, key]).unsqueeze(-1)
    negative = torch.einsum("nc,ck->nk", [query, queue])
    return torch.cat([positive, negative], dim=1) / temperature


def literal_solo_moco(query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> Tensor:
    logits = literal_moco_logits(query, key, queue, temperature)
    return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.long))


@pytest.mark.parametrize("loss", [None, InfoNCELoss(0.9, normalize=False)])
def test_solo_learn_s_moco(loss: InfoNCELoss | None) -> None:
    key, queue = unit(N, D), unit(40, D).T
    agree(
        lambda q: SoloLearnMoCo(loss)(q, key, queue, 0.4),
        lambda q: literal_solo_moco(q, key.double(), queue.double(), 0.4),
        unit(N, D),
    )


def test_a_queue_the_wrong_way_round_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(d, K\) = \(8, K\) beside a query of shape \(6, 8\); got \(40, 8\)"):
        SoloLearnMoCo()(unit(N, D), unit(N, D), unit(40, D), 0.4)
    with pytest.raises(ValueError, match="InfoNCELoss takes; got NTXentLoss"):
        SoloLearnMoCo(NTXentLoss())  # type: ignore[arg-type]


def test_the_installed_solo_learn_computes_the_same() -> None:
    """Its leaf modules run without the packages that its training loop imports."""
    import importlib.util

    solo = importlib.util.find_spec("solo")
    if solo is None or not solo.submodule_search_locations:
        pytest.skip("needs solo-learn")
    (root,) = solo.submodule_search_locations
    modules = []
    for name in ("simclr", "moco"):
        spec = importlib.util.spec_from_file_location(f"solo_{name}", f"{root}/losses/{name}.py")
        assert spec is not None
        assert spec.loader is not None
        modules.append(importlib.util.module_from_spec(spec))
        spec.loader.exec_module(modules[-1])
    simclr, moco = modules
    z, query, key, queue = torch.randn(2 * N, D), unit(N, D), unit(N, D), unit(40, D).T
    torch.testing.assert_close(
        SoloLearnSimCLR(NTXentLoss())(z, torch.arange(N).repeat(2), 0.3), simclr.simclr_loss_func(z[:N], z[N:], 0.3)
    )
    torch.testing.assert_close(SoloLearnMoCo()(query, key, queue, 0.3), moco.moco_loss_func(query, key, queue, 0.3))


# ----------------------------------------------------------------------------------------------------------------- moco
def test_moco_s_criterion() -> None:
    key, queue, zeros = unit(N, D), unit(40, D).T, torch.zeros(N, dtype=torch.long)
    agree(
        lambda q: MoCoCriterion()(literal_moco_logits(q, key, queue, 0.4), zeros),
        lambda q: F.cross_entropy(literal_moco_logits(q, key.double(), queue.double(), 0.4), zeros),
        unit(N, D),
    )


def test_half_logits_give_a_float_loss_that_does_not_vanish() -> None:
    """30 ahead of 64 negatives: 6e-12, which a logarithm of the whole sum rounds to zero."""
    logits, zeros = torch.zeros(2, 65, dtype=torch.float16), torch.zeros(2, dtype=torch.long)
    logits[:, 0] = 30
    loss = MoCoCriterion()(logits, zeros)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(64 * torch.exp(torch.tensor(-30.0, dtype=torch.float64)).item(), rel=1e-5)
    assert F.cross_entropy(logits.float(), zeros).item() == 0


def test_targets_that_moco_does_not_mean_are_refused() -> None:
    criterion, logits = MoCoCriterion(), torch.randn(4, 9)
    with pytest.raises(ValueError, match=r"labels must be zeros.*got 3"):
        criterion(logits, torch.tensor([0, 0, 3, 0]))
    with pytest.raises(ValueError, match=r"expected shape \(4,\), got torch.float32"):
        criterion(logits, torch.zeros(4))
    with pytest.raises(ValueError, match=r"at least one negative, got shape \(4, 1\)"):
        criterion(logits[:, :1], torch.zeros(4, dtype=torch.long))


# ------------------------------------------------------------------------------------------------------------ open_clip
def test_open_clip_s_call_equals_open_clip_s_loss() -> None:
    open_clip = pytest.importorskip("open_clip")
    image, text, scale = unit(N, D), unit(N, D), torch.tensor(14.3)
    given = {"image_features": image, "text_features": text, "logit_scale": scale}
    theirs = open_clip.ClipLoss()(**given, output_dict=True)
    for loss in (OpenCLIP(CLIPLoss()), CLIPLoss()):
        torch.testing.assert_close(loss(**given, output_dict=True), theirs)
    bias = torch.tensor(-10.0)
    torch.testing.assert_close(
        OpenCLIP(SigLIPLoss())(**given, logit_bias=bias, output_dict=True),
        open_clip.loss.SigLipLoss()(**given, logit_bias=bias, output_dict=True),
    )


def literal_one_direction(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    return F.cross_entropy(scale * image @ text.T, torch.arange(len(image)))


def test_the_model_s_scale_is_the_temperature_and_learns() -> None:
    image, text = unit(N, D), unit(N, D)
    loss = OpenCLIP(InfoNCELoss(0.9, normalize=False))
    agree(
        lambda scale: loss(image, text, scale),
        lambda scale: literal_one_direction(image.double(), text.double(), scale),
        torch.tensor(7.0),
    )
    assert loss.loss.temperature == 0.9


def test_terms_are_named_for_open_clip_to_sum_and_log() -> None:
    image, text, scale = unit(N, D), unit(N, D), torch.tensor(5.0)
    tri = TriFactorContrast(D, temperature=1 / 5, decorrelation_weight=0.5, two_towers=True)
    losses = OpenCLIP(tri, penalty=lambda: torch.tensor(0.25))(image, text, scale, output_dict=True)
    assert set(losses) == {"contrast_loss", "decorrelation_loss", "penalty_loss"}
    assert sum(losses.values()).item() == pytest.approx(tri(image, text).item() + 0.25, rel=1e-6)
    assert OpenCLIP(tri)(image, text, scale).item() == pytest.approx(tri(image, text).item(), rel=1e-6)


@pytest.mark.parametrize("loss", [CLIPLoss(), NTXentLoss(), SpectralLoss(), TriFactorContrast(D)])
def test_ddp_finds_a_gradient_for_all_that_the_model_returned(loss: nn.Module) -> None:
    scale, bias, logits = torch.tensor(5.0), torch.tensor(-10.0), torch.randn(3, 4, 5)
    logits[0, 0, 0] = torch.inf
    given = {"logit_scale": scale, "logit_bias": bias, "logits": logits}
    for x in given.values():
        x.requires_grad_()
    value = OpenCLIP(loss)(unit(N, D), unit(N, D), **given)
    assert value.isfinite()
    value.backward()
    assert bias.grad == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))
    assert (scale.grad != 0) == (not isinstance(loss, SpectralLoss))


def test_what_open_clip_leaves_out_is_named() -> None:
    with pytest.raises(ValueError, match="text_features must be a tensor, got NoneType"):
        OpenCLIP(NTXentLoss())(unit(N, D), None, torch.tensor(5.0))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"SigLIPLoss needs a logit_bias.*init_logit_bias=-10"):
        OpenCLIP(SigLIPLoss())(unit(N, D), unit(N, D), torch.tensor(5.0))
    with pytest.raises(ValueError, match=r"same shape \(n, d\), got \(6, 8\) and \(6, 7\)"):
        OpenCLIP(NTXentLoss())(unit(N, D), unit(N, D - 1), torch.tensor(5.0))


# --------------------------------------------------------------------------------------------------------- Hugging Face
@pytest.fixture(scope="module")
def clip_model() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        text_config={**small, "vocab_size": 20, "max_position_embeddings": 5, "eos_token_id": 19},
        vision_config={**small, "image_size": 8, "patch_size": 4},
        projection_dim=D,
    )
    torch.manual_seed(0)
    return transformers.CLIPModel(config)


def batch() -> dict[str, Tensor]:
    return {"input_ids": torch.randint(19, (N, 5)), "pixel_values": torch.randn(N, 3, 8, 8)}


def test_hugging_face_s_model_gives_its_own_loss(clip_model: nn.Module) -> None:
    outputs = clip_model(**batch(), return_loss=True)
    loss = HuggingFaceCLIP(CLIPLoss(), clip_model)(outputs, labels=None, num_items_in_batch=None)
    torch.testing.assert_close(loss, outputs.loss)
    loss.backward()
    assert clip_model.logit_scale.grad != 0


def dead(out_features: int) -> nn.Module:
    """A head that gives rows of zeros."""
    head = NonNegProjection(16, 16, out_features, num_layers=1, norm=None)
    nn.init.zeros_(head.mlp.layers[0].weight)
    nn.init.constant_(head.mlp.layers[0].bias, -9)
    return head


def test_a_row_of_zeros_is_named_and_a_floor_prevents_it(clip_model: nn.Module) -> None:
    model, given = copy.deepcopy(clip_model), batch()
    model.visual_projection = dead(D)
    loss = HuggingFaceCLIP(NTXentLoss(), model)
    with pytest.raises(ValueError, match=r"no epsilon.*ssl_heads.adapters.Floor\(\) after"):
        loss(model(**given))
    model.visual_projection = nn.Sequential(model.visual_projection, Floor())
    value = loss(model(**given))
    value.backward()
    assert value.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize(("dtype", "epsilon"), [(torch.float32, 1e-3), (torch.bfloat16, 1e-3), (torch.float16, 0.1)])
def test_a_floored_row_of_zeros_passes_a_bounded_gradient(dtype: torch.dtype, epsilon: float) -> None:
    """Hugging Face's division without an epsilon, in the model's dtype; 0.1 where squares of 1e-3 underflow."""
    z = torch.zeros(1, 512, dtype=dtype, requires_grad=True)
    floored = Floor(epsilon)(z)
    upstream = F.normalize(torch.randn(1, 512), dim=1).to(dtype)
    (floored / floored.pow(2).sum(dim=-1, keepdim=True).pow(0.5) * upstream).sum().backward()
    assert z.grad is not None
    assert 0.5 / epsilon < z.grad.double().norm() < 1.1 / epsilon


def test_the_trainer_leaves_the_accumulation_to_the_loss(clip_model: nn.Module) -> None:
    outputs = clip_model(**batch())
    whole, quarter = (HuggingFaceCLIP(CLIPLoss(), clip_model, accumulation_steps=k) for k in (1, 4))
    torch.testing.assert_close(quarter(outputs) * 4, whole(outputs))
    with torch.no_grad():
        torch.testing.assert_close(quarter(outputs), whole(outputs))


def test_the_model_is_not_a_part_of_the_loss(clip_model: nn.Module) -> None:
    loss = HuggingFaceCLIP(TriFactorContrast(D), clip_model)
    assert [name for name, _ in loss.named_parameters()] == ["loss.importance.theta"]
    with pytest.raises(ValueError, match="Linear has no logit_scale"):
        HuggingFaceCLIP(CLIPLoss(), nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"no image_embeds and text_embeds.*remove_unused_columns=False"):
        loss(SimpleNamespace(text_embeds=unit(N, D)))


# ------------------------------------------------------------------------------------------------ sentence-transformers
class Table(nn.Module):
    """Embeddings by row number: the output of a SentenceTransformer, without its imports."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.randn(2 * N, D))

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"sentence_embedding": self.rows[features["input_ids"]]}


def test_columns_are_views_and_a_column_with_labels_is_a_batch() -> None:
    model = Table()
    columns = [{"input_ids": torch.arange(N)}, {"input_ids": torch.arange(N, 2 * N)}]
    z = model.rows.unflatten(0, (2, N))
    torch.testing.assert_close(SentenceTransformers(model, NTXentLoss())(columns), NTXentLoss()(z[0], z[1]))
    labels = torch.arange(N) % 3
    torch.testing.assert_close(
        SentenceTransformers(model, SupConLoss())(columns[:1], labels), SupConLoss()(z[0], labels)
    )
    tri = TriFactorContrast(D)
    terms = SentenceTransformers(model, tri)(columns)
    assert isinstance(terms, dict)
    assert sum(terms.values()).item() == pytest.approx(tri(z[0], z[1]).item(), rel=1e-6)


def test_other_columns_are_refused() -> None:
    columns = [{"input_ids": torch.arange(N)}] * 3
    loss = SentenceTransformers(Table(), NTXentLoss())
    with pytest.raises(ValueError, match="got 3 columns without labels for NTXentLoss: select the columns"):
        loss(columns)
    with pytest.raises(ValueError, match="got 1 column without labels"):
        loss(columns[:1])
    with pytest.raises(ValueError, match="got 2 columns with labels for NTXentLoss"):
        loss(columns[:2], torch.arange(N))
    with pytest.raises(ValueError, match="got 2 columns without labels for SupConLoss"):
        SentenceTransformers(Table(), SupConLoss())(columns[:2])


# ---------------------------------------------------------------------------------------------- pytorch-metric-learning
def test_pytorch_metric_learning_s_losses_give_the_same() -> None:
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    z, labels, other = torch.randn(12, D), torch.arange(12) % 4, torch.randn(12, D)
    torch.testing.assert_close(
        MetricLearning(SupConLoss(0.1))(z, labels), losses.SupConLoss(temperature=0.1)(z, labels)
    )
    views = torch.arange(6).repeat(2)
    torch.testing.assert_close(MetricLearning(NTXentLoss(0.3))(z, views), losses.NTXentLoss(temperature=0.3)(z, views))
    torch.testing.assert_close(
        MetricLearning(InfoNCELoss(0.3))(z, torch.arange(12), None, other, torch.arange(12)),
        losses.NTXentLoss(temperature=0.3)(z, torch.arange(12), None, other, torch.arange(12)),
    )
    both = losses.MultipleLosses([MetricLearning(SupConLoss()), losses.TripletMarginLoss()], weights=[1.0, 0.5])
    expected = SupConLoss()(z, labels) + 0.5 * losses.TripletMarginLoss()(z, labels)
    torch.testing.assert_close(both(z, labels), expected)


def test_what_metric_learning_cannot_honour_is_refused() -> None:
    z, labels = torch.randn(12, D), torch.arange(12) % 4
    mined = (torch.tensor([0]), torch.tensor([4]), torch.tensor([1]))
    with pytest.raises(ValueError, match=r"SupConLoss weighs all pairs.*leave the miner out"):
        MetricLearning(SupConLoss())(z, labels, mined)
    with pytest.raises(ValueError, match=r"takes no ref_emb, got shape \(5, 8\)"):
        MetricLearning(SupConLoss())(z, labels, None, torch.randn(5, D), torch.arange(5))
    with pytest.raises(ValueError, match=r"labels and ref_labels must be equal row by row.*at row 0 they are 0 and 1"):
        MetricLearning(InfoNCELoss())(z, labels, None, z, labels + 1)
    with pytest.raises(ValueError, match=r"embeddings and ref_emb.*\(12, 8\) and \(5, 8\)"):
        MetricLearning(InfoNCELoss())(z, labels, None, z[:5], labels[:5])
    with pytest.raises(ValueError, match="labels are missing"):
        MetricLearning(InfoNCELoss())(z)
    with pytest.raises(ValueError, match=r"the first half of labels and the second must be equal"):
        MetricLearning(NTXentLoss())(z, labels)
    with pytest.raises(ValueError, match=r"\(12, 8\)"):
        MetricLearning(OrthonormalAnchorRegression(4, D + 1))(z, labels)


# --------------------------------------------------------------------------------------------------- heads for adapters
def gated() -> GatedHead:
    return GatedHead(NonNegProjection(16, 16, D), BayesianGate(16, D))


def test_a_divergence_that_cannot_train_the_gate_is_refused() -> None:
    head, x = gated(), torch.randn(N, 16, requires_grad=True)
    torch.utils.checkpoint.checkpoint(head, x, use_reentrant=True)
    with pytest.raises(ValueError, match="use_reentrant=False"):
        head.take_kl()
    torch.utils.checkpoint.checkpoint(head, x, use_reentrant=False)
    assert head.take_kl().requires_grad
    with torch.no_grad():
        head(x)
        assert head.take_kl().isfinite()


def test_the_divergence_is_the_mean_over_the_calls_of_a_step() -> None:
    head, x = gated(), torch.randn(2, N, 16)
    z = [head(view) for view in x]
    kl = head.take_kl()
    expected = [head.gate(view, head.head(view)) for view in x]
    torch.testing.assert_close(kl, torch.stack([out.kl for out in expected]).mean())
    torch.testing.assert_close(z, [out.embeddings for out in expected])
    with pytest.raises(ValueError, match="take it once a step"):
        head.take_kl()


def test_evaluation_leaves_nothing_behind() -> None:
    head, x = gated().eval(), torch.randn(N, 16)
    with torch.no_grad():
        for _ in range(2 * GatedHead.MOST_CALLS):
            head(x)
    head.train()(x)
    assert head.take_kl().requires_grad
    assert not head._kl


def test_a_divergence_that_nobody_takes_is_noticed() -> None:
    head = gated()
    with pytest.raises(ValueError, match=r"64 calls of GatedHead, and nobody took the divergence"):
        [head(torch.randn(N, 16)) for _ in range(GatedHead.MOST_CALLS + 1)]


def test_a_gated_head_is_copied_and_pickled_in_the_middle_of_a_step() -> None:
    head = gated()
    head(torch.randn(N, 16))
    for duplicate in (copy.deepcopy(head), pickle.loads(pickle.dumps(head))):
        assert not duplicate._kl
        assert duplicate.state_dict().keys() == head.state_dict().keys()
    head.take_kl().backward()


# ---------------------------------------------------------------------------------------------------------- all of them
def calls() -> dict[str, tuple[nn.Module, tuple[object, ...]]]:
    image, text, scale = unit(N, D), unit(N, D), torch.tensor(5.0)
    model = nn.Module()
    model.logit_scale = nn.Parameter(torch.tensor(1.6))
    labels = torch.arange(N).repeat(2)
    both = torch.cat([image, text])
    columns = [{"input_ids": torch.arange(N)}, {"input_ids": torch.arange(N, 2 * N)}]
    return {
        "solo-learn": (SoloLearnSimCLR(TriFactorContrast(D)), (both, labels, 0.3)),
        "open_clip": (OpenCLIP(TriFactorContrast(D)), (image, text, scale)),
        "hugging face": (
            HuggingFaceCLIP(TriFactorContrast(D), model),
            (SimpleNamespace(image_embeds=image, text_embeds=text),),
        ),
        "sentence-transformers": (SentenceTransformers(Table(), TriFactorContrast(D)), (columns,)),
        "metric learning": (MetricLearning(TriFactorContrast(D)), (both, labels)),
    }


def summed(value: Tensor | dict[str, Tensor]) -> Tensor:
    return torch.stack(list(value.values())).sum() if isinstance(value, dict) else value


@pytest.mark.parametrize("name", calls())
def test_an_importance_that_no_optimiser_holds_is_noticed_through_the_adapter(name: str) -> None:
    loss, given = calls()[name]
    with pytest.warns(UserWarning, match="importance has not changed in 100 training steps.*optimiser"):
        [summed(loss(*given)) for _ in range(101)]


@pytest.mark.parametrize("name", calls())
def test_an_importance_in_the_optimiser_moves(name: str) -> None:
    loss, given = calls()[name]
    importance = loss.loss.importance
    optimizer = torch.optim.SGD(param_groups(loss, lr=1.0, weight_decay=0.0))
    before = importance().detach()
    summed(loss(*given)).backward()
    optimizer.step()
    assert not torch.equal(importance(), before)


@pytest.mark.parametrize("name", calls())
def test_adapters_are_copied_and_pickled(name: str) -> None:
    loss, given = calls()[name]
    value = summed(loss(*given))
    for duplicate in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        torch.testing.assert_close(summed(duplicate(*given)), value)


@pytest.mark.parametrize("name", ["solo-learn", "open_clip"])
def test_adapters_compile_as_one_graph(name: str) -> None:
    loss, given = calls()[name]
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*given), loss(*given))
