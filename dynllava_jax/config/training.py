"""One training run: what `configs/*.py` describe and `dynllava train` carries out."""

import dataclasses
from typing import Literal

from dynllava_jax.config.check import (
    check_choice,
    check_fields,
    check_named,
    check_not_negative,
    check_positive,
    check_seed,
    check_sizes,
)
from dynllava_jax.config.data import DataConfig
from dynllava_jax.config.sparsity import SparsityConfig
from dynllava_jax.errors import InputError, shown


@dataclasses.dataclass(frozen=True)
class InitConfig:
    """Where the weights come from.

    Attributes:
        checkpoint: a model or training checkpoint; predictors that it lacks are made from `seed`. None: all is.
        fresh: what is made from `seed` although the checkpoint has it.
        tokenizer: folder with the tokenizer's files; None: the checkpoint's own.
        seed: of parameters that no checkpoint gives.
    """

    checkpoint: str | None = None
    fresh: tuple[Literal["projector", "predictors"], ...] = ()
    tokenizer: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        check_named(self, "checkpoint", "tokenizer")
        check_seed(self, "seed")


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters on the decoder, whose own weights are then frozen.

    Attributes:
        rank: inner width.
        alpha: the product is scaled by alpha / rank.
        targets: which linear layers of a decoder layer get one.
    """

    rank: int = 64
    alpha: float = 16.0
    targets: tuple[str, ...] = ("query", "key", "value", "out", "gate", "up", "down")

    def __post_init__(self) -> None:
        check_fields(self)
        check_positive(self, "rank", "alpha")
        known = LoraConfig.targets
        if not self.targets or (wrong := [name for name in self.targets if name not in known]):
            raise InputError(
                f"LoraConfig.targets takes {', '.join(known)}, not {shown(wrong if self.targets else ())}."
            )

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with two learning rates (paper section 4.1; official `DynamicLLaVATrainer.create_optimizer`).

    Everything called predictor or selector has `predictor_learning_rate` and `predictor_weight_decay`. Norms and
    biases are never decayed. The rate rises linearly over `warmup_ratio` of the steps and falls as half a cosine.
    """

    learning_rate: float = 5e-6
    predictor_learning_rate: float = 2e-4
    weight_decay: float = 0.0
    predictor_weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    clip_norm: float = 1.0
    warmup_ratio: float = 0.03
    freeze_vision: bool = True
    freeze_projector: bool = False
    freeze_decoder: bool = False
    freeze_predictors: bool = False
    lora: LoraConfig | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        check_positive(self, "learning_rate", "predictor_learning_rate", "eps", "clip_norm")
        for name in ("beta1", "beta2", "warmup_ratio"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise InputError(f"OptimizerConfig.{name} must lie in [0, 1), not {getattr(self, name)!r}.")
        check_not_negative(self, "weight_decay", "predictor_weight_decay")
        if self.freeze_vision and self.freeze_projector and self.freeze_decoder and self.freeze_predictors:
            raise InputError("OptimizerConfig freezes every part of the model: nothing would be trained.")
        if self.lora is not None and self.freeze_decoder:
            raise InputError("OptimizerConfig.lora trains the decoder, freeze_decoder does not; choose one.")


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Cross-entropy plus `mask_weight` times the squared misses of the keep rates (paper eq. 12; reference code).

    Attributes:
        mask_weight: lambda.
        min_answer_tokens: LEN^OT, shorter answers are neither sparsified nor penalised.
        min_instruction_tokens: the same for the last instruction, where the instruct predictor is on.
        eps: of the policy softmax.
        normalise: "global": mean over the supervised tokens of the global batch; "per_device": the official mean of
            means, over the samples that one device sees in one micro-batch.
        chunk: positions whose vocabulary logits exist at the same time, per sample.
        zero_dropped: dropped image tokens stay visible with their features set to zero, instead of the masked
            softmax: what the paper's table 7 compares it with. Answers are sparsified by the masked softmax still,
            since a dropped token goes on to predict the next one.
    """

    mask_weight: float = 100.0
    min_answer_tokens: int = 50
    min_instruction_tokens: int = 25
    eps: float = 1e-6
    normalise: Literal["global", "per_device"] = "global"
    chunk: int = 256
    zero_dropped: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        check_choice(self, "normalise", ("global", "per_device"))
        check_positive(self, "chunk")
        check_not_negative(self, "mask_weight", "min_answer_tokens", "min_instruction_tokens", "eps")


@dataclasses.dataclass(frozen=True)
class GumbelConfig:
    """The temperature falls exponentially from `start` towards `end` over the run; equal values keep it fixed."""

    start: float = 1.0
    end: float = 0.1

    def __post_init__(self) -> None:
        check_fields(self)
        check_positive(self, "start", "end")


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """Every how many steps the state is saved; the `keep` newest stay, and the best by held-out loss."""

    every: int = 500
    keep: int = 2
    keep_best: bool = True

    def __post_init__(self) -> None:
        check_fields(self)
        check_positive(self, "every", "keep")


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Evaluation on held-out samples.

    Attributes:
        every: steps between two evaluations; 0: never.
        source: as `DataConfig.source`; None: the last `samples` samples of the training source, left out of training.
        images: as `DataConfig.images`.
        samples: how many are evaluated.
    """

    every: int = 0
    source: str | None = None
    images: str | None = None
    samples: int = 256

    def __post_init__(self) -> None:
        check_fields(self)
        check_named(self, "source")
        check_positive(self, "samples")
        check_not_negative(self, "every")


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """Where a run tells how it goes, besides `metrics.jsonl`.

    Attributes:
        health_every: steps between two looks at the predictors' health; 0: never.
        tensorboard: write TensorBoard events too.
        wandb_project: Weights & Biases project, or None.
        explosion: a loss this many times its running mean stops the run, as NaN does.
    """

    health_every: int = 50
    tensorboard: bool = True
    wandb_project: str | None = None
    explosion: float = 20.0

    def __post_init__(self) -> None:
        check_fields(self)
        check_positive(self, "explosion")
        check_not_negative(self, "health_every")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A whole run. The defaults are the paper's recipe for Dynamic-LLaVA-7B (section 4.1).

    Attributes:
        model: preset; with `init.checkpoint` it must agree with the checkpoint. None: the checkpoint's own.
        sparsity: what is dropped; None: the model's own.
        template: conversation format; None: the model's own.
        image_aspect: "pad" or "crop", see `ImagePrep`; None: the model's own.
        mesh: devices by axis, see `sharding.mesh.make_mesh`.
        global_batch_size: samples of one optimizer step, over all devices.
        device_batch_size: samples that one device holds at a time, at most; None: all of its share. The rest is
            accumulated.
        epochs: passes over the data.
        steps: optimizer steps instead of `epochs`.
        dtype: of the computation; parameters and moments are float32.
        remat: what the backward pass finds in memory: "full" nothing but each layer's input, "dots" matrix products
            too, "none" everything.
        attention: implementation, see `kernels.api`; None: the platform's best.
        seed: of the Gumbel noise.
    """

    model: str | None = "dynamic_llava_7b"
    sparsity: SparsityConfig | None = None
    template: str | None = None
    image_aspect: Literal["pad", "crop"] | None = None
    init: InitConfig = InitConfig()
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    loss: LossConfig = LossConfig()
    gumbel: GumbelConfig = GumbelConfig()
    mesh: str = "fsdp=-1"
    global_batch_size: int = 64
    device_batch_size: int | None = None
    epochs: float = 1.0
    steps: int | None = None
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    remat: Literal["full", "dots", "none"] = "full"
    attention: str | None = None
    checkpoint: CheckpointConfig = CheckpointConfig()
    eval: EvalConfig = EvalConfig()
    log: LogConfig = LogConfig()
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        check_sizes(self, "global_batch_size", "epochs")
        check_seed(self, "seed")
        check_choice(self, "dtype", ("float32", "bfloat16"))
        check_choice(self, "remat", ("full", "dots", "none"))
        for name in ("device_batch_size", "steps"):
            if getattr(self, name) is not None:
                check_sizes(self, name)
        if self.model is None and self.init.checkpoint is None:
            raise InputError("TrainConfig needs `model`, the name of a preset, or `init.checkpoint`, a folder.")
