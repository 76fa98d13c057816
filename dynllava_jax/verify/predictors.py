"""Case 02: the learned predictors alone, on random hidden states."""

import jax
import jax.numpy as jnp

from dynllava_jax.verify.cases import Case
from dynllava_jax.verify.computed import Computed
from dynllava_jax.verify.subject import Subject


def logits(subject: Subject, case: Case) -> Computed:
    """02_predictors: `logits` of the model's `image_predictor`, `output_predictor` and `instruct_predictor`."""
    model = subject.model
    x, policy, text = (jnp.asarray(case.inputs[name]) for name in ("vision_x", "policy_partial", "text_x"))
    found = Computed()
    if model.image_predictor is not None:
        ones = model.image_predictor.logits(x)
        found.put("vision_logits_ones", ones)
        found.put("vision_logits_partial", model.image_predictor.logits(x, policy[..., 0]))
        found.put("vision_logsoftmax_ones", jax.nn.log_softmax(ones))
    if model.output_predictor is not None:
        found.put("output_text_logits", model.output_predictor.logits(text))
    if model.instruct_predictor is not None:
        found.put("instruct_logits", model.instruct_predictor.logits(text))
    return found
