"""The signatures that other codebases call: each class turns one of them into a call of a loss of this library.

======================== ==================================================== =======================================
class                    is called as                                         by
======================== ==================================================== =======================================
`SoloLearnSimCLR`        `(z, indexes, temperature)`                          solo-learn's `simclr_loss_func`
`SoloLearnMoCo`          `(query, key, queue, temperature)`                   solo-learn's `mocov2plus_loss_func`
`MoCoCriterion`          `(logits, zeros)`                                    facebookresearch/moco's `criterion`
`OpenCLIP`               `(image_features=..., text_features=...,             open_clip's training loop
                         logit_scale=..., output_dict=True)`
`HuggingFaceCLIP`        `(outputs, labels, num_items_in_batch)`              Trainer's `compute_loss_func`
`SentenceTransformers`   `(sentence_features, labels)`                        SentenceTransformerTrainer
`MetricLearning`         `(embeddings, labels, indices_tuple, ref_emb,        pytorch-metric-learning
                         ref_labels)`
======================== ==================================================== =======================================

Where a codebase already calls `loss(z0, z1)` (lightly) or has open_clip's own signature (`CLIPLoss`, `SigLIPLoss`),
no adapter is needed. Two heads fit where these codebases expect one that maps a tensor to a tensor: `GatedHead` keeps
the divergence of the gate until the loss asks for it, `Floor` keeps rows from being zero where a model divides by their
length.

**Who optimises.** Only sentence-transformers gives the parameters of a loss to the optimiser; `SentenceTransformers`
makes them a module of the model, so that they are saved and equal on all ranks. Elsewhere let the model own what is
learned, `model.importance = FeatureImportance(d)`, and let the loss borrow it,
`TriFactorContrast(importance=model.importance)`: the model's optimiser, DDP and checkpoints then include it. Where
you build the optimiser yourself, `param_groups(model, adapter, ...)` includes a loss that owns its importance.
"""

from __future__ import annotations

from ssl_heads.adapters.heads import Floor, GatedHead
from ssl_heads.adapters.hugging_face import HuggingFaceCLIP
from ssl_heads.adapters.metric_learning import MetricLearning
from ssl_heads.adapters.moco import MoCoCriterion
from ssl_heads.adapters.open_clip import OpenCLIP
from ssl_heads.adapters.sentence_transformers import SentenceTransformers
from ssl_heads.adapters.sentence_transformers_modules import SentenceTransformersHead
from ssl_heads.adapters.solo_learn import SoloLearnMoCo, SoloLearnSimCLR

__all__ = [
    "Floor",
    "GatedHead",
    "HuggingFaceCLIP",
    "MetricLearning",
    "MoCoCriterion",
    "OpenCLIP",
    "SentenceTransformers",
    "SentenceTransformersHead",
    "SoloLearnMoCo",
    "SoloLearnSimCLR",
]
