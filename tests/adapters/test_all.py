"""What holds for every adapter."""

from __future__ import annotations

import contextlib
import copy
import pickle
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from ssl_heads import (
    CLIPLoss,
    DeltaContrast,
    InfoNCELoss,
    NonNegCrossEntropy,
    NTXentLoss,
    OrthonormalAnchorRegression,
    SigLIPLoss,
    SpectralLoss,
    SupConLoss,
    TriFactorContrast,
    param_groups,
)
from ssl_heads.adapters import (
    HuggingFaceCLIP,
    MetricLearning,
    OpenCLIP,
    SentenceTransformers,
    SoloLearnMoCo,
    SoloLearnSimCLR,
)
from ssl_heads.losses._base import Loss
from tests.adapters.support import D, N, Table, unit


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
    without_it = torch.optim.SGD([nn.Parameter(torch.zeros(1))])
    with pytest.warns(UserWarning, match="importance has not changed while optimisers took 100 steps"):  # noqa: PT031
        for _ in range(101):
            summed(loss(*given))
            without_it.step()


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


# -------------------------------------------------------------------------------------------------------- temperatures

WITH_A_TEMPERATURE = {
    "nt-xent": NTXentLoss,
    "info-nce": InfoNCELoss,
    "sup-con": SupConLoss,
    "tri-factor": lambda temperature: TriFactorContrast(D, temperature=temperature),
    "tri-factor, two towers": lambda temperature: TriFactorContrast(D, temperature=temperature, two_towers=True),
}


def at_the_callers(
    make: Callable[[float | Tensor], Loss], own: float | Tensor
) -> dict[str, Callable[[Tensor], Tensor]]:
    """The adapters that pass a temperature, as functions of it."""
    loss, z, labels, queue = make(own), torch.cat([unit(N, D), unit(N, D)]), torch.arange(N).repeat(2), unit(D, 9)
    found = {"solo-learn": lambda t: SoloLearnSimCLR(loss)(z, labels, t)}
    if loss.takes == "views":
        found["open_clip"] = lambda t: OpenCLIP(loss)(z[:N], z[N:], 1 / t)
        outputs = SimpleNamespace(image_embeds=z[:N], text_embeds=z[N:])
        model = nn.Module()

        def hugging_face(t: Tensor) -> Tensor:
            model.logit_scale = -t.log()
            return HuggingFaceCLIP(loss, model)(outputs)

        found["hugging face"] = hugging_face
    if isinstance(loss, InfoNCELoss):
        found["solo-learn's moco"] = lambda t: SoloLearnMoCo(loss)(z[:N], z[N:], queue, t)
    return found


@pytest.mark.parametrize("name", WITH_A_TEMPERATURE)
def test_the_callers_temperature_counts_whatever_the_loss_has_and_gets_its_gradient(name: str) -> None:
    make = WITH_A_TEMPERATURE[name]
    torch.manual_seed(0)
    fixed = at_the_callers(make, 0.7)
    torch.manual_seed(0)
    learned = at_the_callers(make, nn.Parameter(torch.tensor([0.7])))
    for adapter, value in fixed.items():
        t = torch.tensor(0.3, requires_grad=True)
        torch.testing.assert_close(learned[adapter](t), value(t), msg=lambda m, a=adapter: f"{a}: {m}")
        (gradient,) = torch.autograd.grad(value(t), t)
        numeric = (value(torch.tensor(0.303)) - value(torch.tensor(0.297))) / 0.006
        assert gradient.item() == pytest.approx(numeric.item(), rel=0.02), adapter


@pytest.mark.parametrize("name", WITH_A_TEMPERATURE)
def test_adapters_change_nothing_of_a_loss(name: str) -> None:
    own = nn.Parameter(torch.tensor(0.7))
    loss = WITH_A_TEMPERATURE[name](own)
    if name == "info-nce":
        with pytest.raises(AttributeError, match="temperature"), unchangeable(loss):
            loss.temperature = 0.3
    for adapter, value in at_the_callers(lambda _: loss, own).items():
        with unchangeable(loss):
            assert value(torch.tensor(0.3)).isfinite(), adapter
    assert loss.temperature is own


@contextlib.contextmanager
def unchangeable(loss: Loss) -> Iterator[None]:
    """No attribute of the class's instances can be set, but what the loss itself notes about steps."""
    kind = type(loss)

    def refuse(self: object, name: str, value: object) -> None:
        if not name.startswith("_"):
            raise AttributeError(name)
        nn.Module.__setattr__(self, name, value)

    kind.__setattr__ = refuse
    try:
        yield
    finally:
        del kind.__setattr__


def test_a_learned_temperature_of_the_loss_learns_where_no_caller_passes_one() -> None:
    columns = [{"input_ids": torch.arange(N)}, {"input_ids": torch.arange(N, 2 * N)}]
    both, labels = torch.randn(2 * N, D), torch.arange(N).repeat(2)
    for make in WITH_A_TEMPERATURE.values():
        own = nn.Parameter(torch.tensor([0.7]))
        loss = make(own)
        MetricLearning(loss)(both, labels).backward()
        assert own.grad != 0
        if loss.takes == "views":
            own.grad = None
            summed(SentenceTransformers(Table(), loss)(columns)).backward()
            assert own.grad != 0


# ------------------------------------------------------------------------------------------------ what a loss is called

LOSSES = [
    CLIPLoss(),
    SigLIPLoss(),
    NTXentLoss(),
    InfoNCELoss(),
    SpectralLoss(),
    DeltaContrast(),
    TriFactorContrast(D),
    SupConLoss(),
    OrthonormalAnchorRegression(3, D),
    NonNegCrossEntropy(D, 3),
]
PLACES = {
    "open_clip": (OpenCLIP, ("views", "towers")),
    "hugging face": (lambda loss: HuggingFaceCLIP(loss, calls()["hugging face"][0]._model[0]), ("views", "towers")),
    "sentence-transformers": (lambda loss: SentenceTransformers(Table(), loss), ("views", "labels")),
    "metric learning": (MetricLearning, ("views", "labels")),
}


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
@pytest.mark.parametrize("place", PLACES)
def test_a_loss_that_an_adapter_has_no_inputs_for_is_refused(place: str, loss: Loss) -> None:
    make, accepted = PLACES[place]
    if loss.takes in accepted:
        make(loss)
    else:
        with pytest.raises(ValueError, match=f"{type(loss).__name__} is one of {loss.takes}: it needs"):
            make(loss)


def test_a_loss_that_does_not_say_what_it_takes_is_no_class() -> None:
    with pytest.raises(TypeError, match='Undeclared must declare what it takes: takes = "views"'):
        type("Undeclared", (Loss,), {"forward": lambda self, z: z})
    with pytest.raises(TypeError, match='Unknown must declare what it takes: takes = "views"'):
        type("Unknown", (Loss,), {"forward": lambda self, z: z, "takes": "pairs"})
    with pytest.raises(TypeError, match="Mute must declare what its repr shows"):
        type("Mute", (Loss,), {"forward": lambda self, z: z, "takes": "views"})
    own = type("Own", (NTXentLoss,), {"forward": lambda self, z0, z1: z0.mean()})
    assert own().takes == "views"
