"""Records what the official Dynamic-LLaVA code computes, as a folder that `dynllava verify --cases` reads.

Self-contained: copy this file anywhere and run it in the official code's own environment, on any checkpoint in float32:

    python record_official.py --official REPO --checkpoint DIR --vision-tower DIR --out CASES \
        --image a.jpg --question "What is this?"

With `--again DIR` the inputs of an earlier recording are taken instead of pictures. Two cases are made: 05_prefill_kv
(top-k indices, hidden states, logits, cache) and 06_decode_kv (decisions of given answer tokens, greedy ids).

B batch, T tokens, V vocabulary.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

import numpy as np

PREDICTORS = ("image_score_predictor", "output_text_score_predictor", "instruct_score_predictor")


def host(x):
    x = x.detach().float().numpy() if x.is_floating_point() else x.detach().numpy()
    return x.astype(np.int32) if x.dtype == np.int64 else x


class Watch:
    """What the layers and predictors give while a call runs."""

    def __init__(self, model):
        self.layers, self.positions, self.predicted, self._hooks = {}, {}, {}, []
        for i, layer in enumerate(model.model.layers):
            self._hooks.append(layer.register_forward_hook(self._layer(i), with_kwargs=True))
        for name in PREDICTORS:
            if hasattr(model.model, name):
                self._hooks.append(getattr(model.model, name).register_forward_hook(self._predictor(name)))

    def _layer(self, i):
        def seen(module, args, kwargs, out):
            self.layers[i], self.positions[i] = host(out[0]), host(kwargs["position_ids"])

        return seen

    def _predictor(self, name):
        def seen(module, args, out):
            self.predicted[name] = host(out)

        return seen

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for hook in self._hooks:
            hook.remove()


class Recorder:
    """One model and the cases made with it."""

    def __init__(self, model, out):
        import torch

        self.torch, self.model, self.out = torch, model, out
        self.sparse = {**model.config.sparse_config, "use_instruct_predictor": False}
        model.config.sparse_config = model.model.config.sparse_config = self.sparse
        self.first = self.sparse["sparse_layer"]

    def call(self, ids, **more):
        with Watch(self.model) as watch, self.torch.no_grad():
            out = self.model(input_ids=self.torch.from_numpy(ids.astype(np.int64)), use_cache=True, **more)
        return out, watch

    def prefill(self, ids, image):
        self.model.model.answer_indice = None
        out, watch = self.call(ids, images=self.torch.from_numpy(image))
        caches, lengths = out.past_key_values
        arrays = {}
        logits = watch.predicted[PREDICTORS[0]].reshape(len(ids), -1, 2)
        score = self.torch.log_softmax(self.torch.from_numpy(logits), -1)[..., 0].numpy()
        keep = int(logits.shape[1] * self.sparse["vision_keep_rate"])
        arrays["image_logits"], arrays["image_keep_score"] = logits, score
        arrays["image_keep_index"] = np.sort(np.argsort(-score, 1, kind="stable")[:, :keep], 1).astype(np.int32)
        arrays["position_ids_before"] = np.atleast_2d(watch.positions[0])
        arrays["position_ids_after"] = watch.positions[self.first]
        arrays |= {f"hidden_after_layer_{i}": hidden for i, hidden in watch.layers.items()}
        arrays["logits"], arrays["last_logits"] = host(out.logits), host(out.logits[:, -1])
        arrays |= self.lengths(caches, lengths)
        for i in (self.first - 1, len(caches) - 1):
            arrays[f"key_{i}"], arrays[f"value_{i}"] = host(caches[i][0]), host(caches[i][1])
        return arrays, out.past_key_values

    def lengths(self, caches, lengths):
        held = np.array([pair[0].shape[-2] for pair in caches], np.int32)
        true = np.array([host(length) for length in lengths], np.int32).reshape(len(caches), -1)
        return {"cache_len": held, "cache_true_len": true}

    def decode(self, ids, image, answer):
        _, cache = self.prefill(ids, image)
        steps = []
        for t in range(answer.shape[1]):
            out, watch = self.call(answer[:, t : t + 1], past_key_values=cache)
            cache = out.past_key_values
            judged = watch.predicted[PREDICTORS[1]].reshape(1, 1, 2)
            hidden = np.stack([watch.layers[i][:, 0] for i in sorted(watch.layers)], 1)[:, None]
            row = {"logits": host(out.logits), "text_logits": judged, "hidden": hidden}
            row |= {"text_decision": judged[..., 0] > judged[..., 1], "position": watch.positions[0]}
            steps.append(row | self.lengths(*cache))
        return {
            name: np.stack([s[name] for s in steps])
            if name.startswith("cache")
            else np.concatenate([s[name] for s in steps], 1)
            for name in steps[0]
        }

    def greedy(self, ids, image, count):
        self.model.model.answer_indice = None
        with self.torch.no_grad():
            made = self.model.generate(
                self.torch.from_numpy(ids.astype(np.int64)),
                images=self.torch.from_numpy(image),
                do_sample=False,
                max_new_tokens=count,
                eos_token_id=self.model.config.vocab_size - 1,
                use_cache=True,
                return_dict_in_generate=True,
                output_scores=True,
            )
        return {
            "greedy_ids": host(made.sequences)[:, -count:],
            "logits": np.stack([host(score) for score in made.scores], 1),
        }

    def write(self, name, inputs, outputs, rows):
        arrays = inputs | outputs
        np.savez(self.out / "cases" / f"{name}.npz", **arrays)
        described = {
            key: {"role": "input" if key in inputs else "output", "shape": list(np.shape(value)), "description": ""}
            for key, value in arrays.items()
        }
        images = {"pixel_values": {"file": "00_images.npz", "array": "a", "rows": rows}}
        document = {"case": name, "summary": "recorded by record_official.py", "notes": [], "info": {"images": images}}
        document |= {"effective_sparse_config": self.sparse, "arrays": described}
        (self.out / "cases" / f"{name}.json").write_text(json.dumps(document, indent=1))


def from_pictures(args, model):
    """Prompt ids [1,S], pixels [1,3,H,W], no answer."""
    from llava.constants import IMAGE_TOKEN_INDEX
    from llava.conversation import conv_templates
    from llava.mm_utils import process_images, tokenizer_image_token
    from PIL import Image
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(args.checkpoint, use_fast=False)
    talk = conv_templates["v1"].copy()
    talk.append_message(talk.roles[0], f"<image>\n{args.question}")
    talk.append_message(talk.roles[1], None)
    ids = tokenizer_image_token(talk.get_prompt(), tokenizer, IMAGE_TOKEN_INDEX)
    pictures = [Image.open(path).convert("RGB") for path in args.image]
    pixels = process_images(pictures, model.get_vision_tower().image_processor, model.config)
    return np.array([ids] * len(pictures), np.int32), np.stack([np.asarray(x) for x in pixels]).astype(np.float32)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--official", type=Path, required=True, help="checkout of the official repository")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--vision-tower", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--again", type=Path, help="a recording whose inputs are taken")
    parser.add_argument("--image", nargs="+", default=[])
    parser.add_argument("--question", default="Describe the picture.")
    parser.add_argument("--tokens", type=int, default=12, help="of the greedy answer")
    args = parser.parse_args()
    if bool(args.image) == bool(args.again):
        parser.error("give either --image or --again")
    sys.path.insert(0, str(args.official))
    import torch
    from llava.model.language_model.dynamic_llava_llama import DynamicLlavaConfig, DynamicLlavaLlamaForCausalLM

    values = json.loads((args.checkpoint / "config.json").read_text())
    config = DynamicLlavaConfig(**{**values, "mm_vision_tower": str(args.vision_tower.resolve())})
    model = DynamicLlavaLlamaForCausalLM.from_pretrained(
        args.checkpoint, config=config, torch_dtype=torch.float32, attn_implementation="sdpa"
    ).eval()
    model.get_vision_tower().load_model()
    (args.out / "cases").mkdir(parents=True)
    shutil.copytree(args.checkpoint, args.out / "checkpoint")
    shutil.copytree(args.vision_tower, args.out / "vision_tower")
    if args.again:
        with np.load(args.again / "cases" / "00_images.npz") as file:
            pixels = file["a"]
        with np.load(args.again / "cases" / "06_decode_kv.npz") as file:
            ids, answer = file["input_ids"], file["answer_ids"]
        manifest = json.loads((args.again / "manifest.json").read_text())["special_text"]
    else:
        ids, pixels = from_pictures(args, model)
        answer = None
        from llava.model import dynamic_llava_arch

        manifest = dynamic_llava_arch.special_text
    (args.out / "manifest.json").write_text(json.dumps({"special_text": manifest}))
    np.savez(args.out / "cases" / "00_images.npz", a=pixels)
    recorder = Recorder(model, args.out)
    made, _ = recorder.prefill(ids[:1], pixels[:1])
    recorder.write("05_prefill_kv", {"input_ids": ids[:1]}, made, [0])
    greedy = recorder.greedy(ids[:1], pixels[:1], args.tokens)
    if answer is None:
        answer = np.repeat(greedy["greedy_ids"], len(ids), 0)
    outputs = {f"gen.{name}": value for name, value in greedy.items()}
    outputs |= {f"b1.{name}": x for name, x in recorder.decode(ids[:1], pixels[:1], answer[:1]).items()}
    recorder.write("06_decode_kv", {"input_ids": ids, "answer_ids": answer}, outputs, list(range(len(ids))))


if __name__ == "__main__":
    main()
