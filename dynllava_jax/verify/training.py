"""Cases 10, 10b, 12 and 14: the training pass, its gradients, the optimizer and five steps of it.

B batch, S sequence, P image tokens of one image, N tokens of a padded span, C features.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dynllava_jax.checkpoint.leaves import targets
from dynllava_jax.config.model import ModelConfig
from dynllava_jax.config.training import GumbelConfig, LossConfig, OptimizerConfig, TrainConfig
from dynllava_jax.convert.table import OFFICIAL, decoder_rules
from dynllava_jax.data.batch import Batch
from dynllava_jax.data.spans import Kind
from dynllava_jax.nn.flat import unflatten
from dynllava_jax.sharding.mesh import make_mesh
from dynllava_jax.training.cross_entropy import shift
from dynllava_jax.training.decisions import GumbelRule, Noise
from dynllava_jax.training.forward import ForwardPlan
from dynllava_jax.training.loss import LossOutput, compute_loss, shares
from dynllava_jax.training.optimizer import GROUPS, Optimizer
from dynllava_jax.training.partition import is_trained
from dynllava_jax.training.schedule import cosine, temperature
from dynllava_jax.training.state import Parameters, begin
from dynllava_jax.training.step import Trainer
from dynllava_jax.verify.cases import Case
from dynllava_jax.verify.computed import Computed, spans_of
from dynllava_jax.verify.subject import Subject

_TEXT = {"output": ("output_text", Kind.ANSWER), "instruct": ("instruct", Kind.LAST_INSTRUCTION)}
"""Our names of the text predictors' spans, and the recording's."""


def one_pass(subject: Subject, case: Case) -> Computed:
    """10_train, 10b_train_instruct: `training.loss.compute_loss` under recorded noise, and its gradient."""
    config = _config(subject, case)
    batch, samples = subject.training_batch(case)
    abstract, values = subject.parameters(config)
    noise = _noise(case, batch, "")
    trained = {path for path in values if is_trained(path, OptimizerConfig())}
    tau = jnp.float32(_tau(case))
    plan = ForwardPlan(_loss_config(case), attention=subject.implementation)
    keys = subject.keys(len(samples))

    def loss(params: dict[str, Array], batch: Batch, noise: Noise) -> tuple[Array, LossOutput]:
        model = unflatten(abstract, {**values, **params})
        share = shares(batch.need_labels(), batch.lengths)
        out = compute_loss(model, batch, keys, GumbelRule(noise, tau), share, plan)
        return out.total, out

    gradient = jax.jit(jax.grad(loss, has_aux=True))
    gradients, out = gradient({path: values[path] for path in trained}, batch, noise)
    found = Computed()
    _put_pass(found, batch, out, unflatten(abstract, values))
    torch = _torch_names(config, gradients)
    for name in case.outputs:
        if name.startswith("grad."):
            found.put(name, torch[name.removeprefix("grad.")])
    recorded = case.info.get("grad_norms", {})
    norms = {name: float(np.linalg.norm(torch[name])) if name in torch else None for name in recorded}
    found.info["info.grad_norms"] = norms
    found.info["info.input_embeds_indices"] = spans_of(samples)
    return found


def optimizer(subject: Subject, case: Case) -> Computed:
    """12_optimizer_groups: `training.optimizer` and `training.schedule`."""
    found = Computed()
    settings = case.info["args"]
    config = _optimizer_config(settings, 0.0)
    axes = Parameters.of(subject.config, config, _mesh(subject)).axes
    groups = Optimizer(config, {path: axes[path] for path in axes if is_trained(path, config)}, 1).groups
    sources = {name: at for name, at in _sources(subject.config).items() if name in subject.tensors}
    found.info["info.groups"] = [
        {
            "index": index,
            "lr": group.learning_rate(config),
            "weight_decay": group.weight_decay(config),
            "betas": [config.beta1, config.beta2],
            "eps": config.eps,
            "params": sorted(name for name, (path, _, _) in sources.items() if groups.get(path) == group),
        }
        for index, group in enumerate(GROUPS)
    ]
    known = {name for group in found.info["info.groups"] for name in group["params"]}
    found.info["info.in_no_group"] = sorted(subject.tensors - known)
    for name in case.outputs:
        if match := re.fullmatch(r"lr_total(\d+)_warm(\d+)", name):
            total, warmup = int(match[1]), int(match[2])
            factor = np.asarray(cosine(jnp.arange(total), total, warmup), np.float64)
            rates = np.array([group.learning_rate(config) for group in GROUPS])
            found.put(name, factor[:, None] * rates)
        elif match := re.fullmatch(r"gumbel_tau_(\d+)", name):
            found.put(name, temperature(jnp.arange(int(match[1])), int(match[1]), GumbelConfig()))
    return found


def trajectory(subject: Subject, case: Case) -> Computed:
    """14_train_trajectory: `training.step.Trainer` under recorded noise."""
    steps = len(case.outputs["loss_total"])
    model = _config(subject, case)
    settings = case.info["args"]
    config = TrainConfig(
        model=None,
        init=dataclasses.replace(TrainConfig().init, checkpoint="the recording's"),
        optimizer=_optimizer_config(settings, max(0.0, (settings["warmup_steps"] - 0.5) / steps)),
        loss=_loss_config(case),
        global_batch_size=len(case.inputs["input_ids"]),
        dtype="float32",
        attention=subject.attention,
    )
    batch, _ = subject.training_batch(case)
    mesh = _mesh(subject)
    trainer = Trainer(model, config, mesh, steps)
    _, values = subject.parameters(model)
    state = begin(trainer.parameters, jax.tree.map(jnp.copy, values), "float32", mesh)  # other cases want them too
    seen: dict[str, list[Any]] = {"loss_total": [], "mask_losses": [], "gumbel_tau": [], "grad_norm": [], "lr": []}
    for step in range(steps):
        seen["lr"].append(np.asarray(trainer.optimizer.learning_rates(step)))
        state, metrics = trainer.step(state, batch, _noise(case, batch, f"_{step}"))
        masks = [float(metrics[f"{place}_mask"]) for place in ("image", *_TEXT) if f"{place}_mask" in metrics]
        for name, value in zip(("loss_total", "gumbel_tau", "grad_norm"), ("loss", "tau", "grad_norm"), strict=True):
            seen[name].append(np.asarray(metrics[value]))
        seen["mask_losses"].append(np.array(masks, np.float32))  # none without predictors
    found = Computed()
    for name, values_seen in seen.items():
        found.put(name, np.stack(values_seen))
    torch = _torch_names(model, state.params)
    for name in case.outputs:
        if name.startswith("final."):
            found.put(name, torch[name.removeprefix("final.")])
    return found


def _mesh(subject: Subject) -> jax.sharding.Mesh:
    """The device that the weights lie on, alone."""
    return make_mesh("data=1", list(subject.model.decoder.embedding[...].devices()))


def _put_pass(found: Computed, batch: Batch, out: LossOutput, model: Any) -> None:
    kind, labels = np.asarray(batch.kind), np.asarray(batch.need_labels())
    padding = kind == Kind.PAD
    decisions = out.forward.decisions
    found.put("expanded_attention_mask", ~padding)
    found.put("expanded_labels", labels)
    assert decisions.policy is not None
    found.put("policy", decisions.policy[..., None])
    found.put("loss_ce", out.terms["ce"])
    found.put("loss_total", out.total)
    if (image := decisions.image) is not None and image.logits is not None:
        found.put("image_mask", image.keep[:, 0])
        found.put("image_mask_loss", out.terms["image_mask"])
        found.put("logsoftmax_image", jax.nn.log_softmax(image.logits[:, 0]))
    for place, (name, wanted) in _TEXT.items():
        verdict = getattr(decisions, place)
        if verdict is None:
            continue
        found.put(f"{name}_mask_loss", out.terms[f"{place}_mask"])
        logits, beyond = _spans(np.asarray(jax.nn.log_softmax(verdict.logits)), kind == wanted)
        found.put(f"logsoftmax_{name}", logits, beyond)
        for row, keep in enumerate(np.asarray(verdict.keep)):
            found.put(f"{name}_mask_{row}", keep[kind[row] == wanted])
    found.put("hidden_before_selection", out.forward.selected_from, padding)
    found.put("hidden_after_last_layer", out.forward.hidden, padding)
    rows, positions = np.nonzero(np.asarray(shift(jnp.asarray(labels))) != -100)
    found.put("logit_index", np.stack([rows, positions], axis=-1).astype(np.int32))
    found.put("logits_at_labels", jax.jit(model.decoder.logits)(out.forward.hidden[rows, positions]))


def _spans(x: Float[np.ndarray, "B S C"], inside: np.ndarray) -> tuple[Float[np.ndarray, "B N C"], np.ndarray]:
    """The rows inside each sample's span, left-packed, and where there are none."""
    size = int(inside.sum(axis=-1).max(initial=0))
    packed = np.zeros((len(x), size, x.shape[-1]), x.dtype)
    beyond = np.ones((len(x), size), bool)
    for row, own in enumerate(inside):
        packed[row, : own.sum()], beyond[row, : own.sum()] = x[row][own], False
    return packed, beyond


def _noise(case: Case, batch: Batch, suffix: str) -> Noise:
    """Recorded noise where our predictors look for it: that of a span's token at the token's place."""
    kind = np.asarray(batch.kind)
    text: dict[str, np.ndarray] = {}
    for place, (name, wanted) in _TEXT.items():
        text[place] = np.zeros((*kind.shape, 2), np.float32)
        recorded = case.inputs.get(f"gumbel_noise_{name}{suffix}", text[place])
        for row, own in enumerate(kind == wanted):
            text[place][row, own] = recorded[row, : own.sum()]
    image = case.inputs.get(f"gumbel_noise_image{suffix}")
    places = {place: jnp.asarray(noise) for place, noise in text.items()}
    return Noise(None if image is None else jnp.asarray(image)[:, None], places["output"], places["instruct"])


def _config(subject: Subject, case: Case) -> ModelConfig:
    return dataclasses.replace(subject.config, sparsity=subject.sparsity(case))


def _loss_config(case: Case) -> LossConfig:
    said = case.sparse_config or {}
    default = LossConfig()
    return LossConfig(
        mask_weight=said.get("mask_loss_weight", default.mask_weight),
        min_answer_tokens=said.get("output_text_len_for_training", default.min_answer_tokens),
        min_instruction_tokens=said.get("instruct_len_for_training", default.min_instruction_tokens),
    )


def _optimizer_config(settings: Mapping[str, Any], warmup_ratio: float) -> OptimizerConfig:
    default = OptimizerConfig()
    beta1, beta2 = settings.get("betas", (default.beta1, default.beta2))
    return OptimizerConfig(
        learning_rate=settings["learning_rate"],
        predictor_learning_rate=settings["predictor_lr"],
        weight_decay=settings["weight_decay"],
        predictor_weight_decay=settings["predictor_weight_decay"],
        beta1=beta1,
        beta2=beta2,
        eps=settings.get("eps", default.eps),
        clip_norm=settings.get("max_grad_norm", default.clip_norm),
        warmup_ratio=warmup_ratio,
    )


def _tau(case: Case) -> float:
    """The temperature, which the recording only gives in words."""
    match = re.search(r"gumbel_tau=([\d.]+\d)", case.summary)
    return float(match[1]) if match else 1.0


def _sources(config: ModelConfig) -> dict[str, tuple[str, int | None, Any]]:
    """Torch's name of every tensor of decoder, projector and predictors: our path, the layer in it, the transform.

    A projector of one layer stands here under both of its names.
    """
    places = {
        leaf: (target.path, index if target.stacked else None)
        for target in targets(config)
        for index, leaf in enumerate(target.leaves)
    }
    rules = [rule for rule in decoder_rules(OFFICIAL, config) if rule.leaf in places]
    return {rule.source: (*places[rule.leaf], rule.transform) for rule in rules}


def _torch_names(config: ModelConfig, arrays: Mapping[str, Array]) -> dict[str, np.ndarray]:
    """Parameters, or their gradients, under torch's names and in torch's layout."""
    named = {}
    for name, (path, layer, transform) in _sources(config).items():
        if path in arrays:
            array = np.asarray(arrays[path])
            named[name] = transform.invert(array if layer is None else array[layer])
    return named
