"""Records what the official Dynamic-LLaVA code computes, as a folder that `dynllava verify --cases` reads.

Self-contained: copy this file anywhere and run it in the official code's own environment, on any checkpoint:

    python record_official.py --official REPO --checkpoint DIR --vision-tower DIR --out CASES \
        --image a.jpg --question "What is this?"

With `--again DIR` the inputs of an earlier recording are taken instead of pictures, case by case. `--dtype` is what
the official code computes in; the recording says so, and is compared with what that dtype allows. A half one rounds
scores that are nearly equal apart, so only the cases are made whose numbers do not hang on many decisions.

B batch, T tokens, P image tokens, V vocabulary.
"""

import argparse
import json
import shutil
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np

IMAGE, OUTPUT, INSTRUCT = "image_score_predictor", "output_text_score_predictor", "instruct_score_predictor"
STEPS = (0, 1, 2, 3, 5, 8, 12)
STEP = ("logits", "text_logits", "text_decision", "position", "cache_len", "cache_true_len")
TOLERANCE = {"float32": 2e-5, "float16": 5e-3, "bfloat16": 4e-2}
FLOAT32_ONLY = ("07", "08", "08b", "09", "09b")


def host(x):
    x = x.detach().float().cpu().numpy() if x.is_floating_point() else x.detach().cpu().numpy()
    return x.astype(np.int32) if x.dtype == np.int64 else x


class Watch(ExitStack):
    """What the layers and predictors give while a call runs; each hook is a context, which removes it."""

    def __init__(self, model):
        super().__init__()
        self.layers, self.positions, self.predicted = {}, {}, {}
        for i, layer in enumerate(model.model.layers):
            self.enter_context(layer.register_forward_hook(partial(self._layer, i), with_kwargs=True))
        for name in (IMAGE, OUTPUT, INSTRUCT):
            if hasattr(model.model, name):
                self.enter_context(getattr(model.model, name).register_forward_hook(partial(self._predictor, name)))

    def _layer(self, i, module, args, kwargs, out):
        self.layers[i], self.positions[i] = host(out[0]), np.atleast_2d(host(kwargs["position_ids"]))

    def _predictor(self, name, module, args, out):
        self.predicted[name] = host(out)


class Recorder:
    """One model and the calls of which cases are made."""

    def __init__(self, model, dtype, device):
        import torch

        self.torch, self.model, self.dtype, self.device = torch, model, dtype, device
        self.exact = dtype == torch.float32
        self.all = dict(model.config.sparse_config)
        self.first = self.all["sparse_layer"]
        self.switch()

    def switch(self, **more):
        """What is dropped from here on; without instructions unless asked for."""
        self.sparse = {**self.all, "use_instruct_predictor": False, **more}
        self.model.config.sparse_config = self.model.model.config.sparse_config = self.sparse
        self.model.model.answer_indice = None

    def tensor(self, x):
        kind = self.dtype if np.issubdtype(x.dtype, np.floating) else self.torch.int64
        return self.torch.from_numpy(np.ascontiguousarray(x)).to(self.device, kind)

    def call(self, ids, image=None, use_cache=True, **more):
        if image is not None:
            more["images"] = self.tensor(image)
        with Watch(self.model) as watch, self.torch.no_grad():
            out = self.model(input_ids=self.tensor(ids), use_cache=use_cache, **more)
        return out, watch

    def lengths(self, caches, lengths):
        held = np.array([pair[0].shape[-2] for pair in caches], np.int32)
        true = np.array([host(length) for length in lengths], np.int32).reshape(len(caches), -1)
        return {"cache_len": held, "cache_true_len": true}

    def chosen(self, watch, rows):
        """The image predictor's logits [B,P,2] and the places it keeps [B,K]; nothing where there is none."""
        if IMAGE not in watch.predicted:
            return {}
        logits = watch.predicted[IMAGE].reshape(rows, -1, 2)
        score = self.torch.log_softmax(self.torch.from_numpy(logits), -1)[..., 0].numpy()
        keep = int(logits.shape[1] * self.sparse["vision_keep_rate"])
        index = np.sort(np.argsort(-score, 1, kind="stable")[:, :keep], 1).astype(np.int32)
        return {"image_logits": logits, "image_keep_score": score, "image_keep_index": index}

    def predictors(self, given, images):
        out, model = {}, self.model.model

        def run(name, *inputs):
            with self.torch.no_grad():
                return host(getattr(model, name)(*map(self.tensor, inputs)))

        x, rows = given["vision_x"], len(given["vision_x"])
        if hasattr(model, IMAGE):
            ones = run(IMAGE, x, np.ones_like(given["policy_partial"])).reshape(rows, -1, 2)
            out["vision_logits_ones"] = ones
            out["vision_logits_partial"] = run(IMAGE, x, given["policy_partial"]).reshape(rows, -1, 2)
            out["vision_logsoftmax_ones"] = self.torch.log_softmax(self.torch.from_numpy(ones), -1).numpy()
        for name, array in ((OUTPUT, "output_text_logits"), (INSTRUCT, "instruct_logits")):
            if hasattr(model, name):
                out[array] = run(name, given["text_x"]).reshape(*given["text_x"].shape[:2], 2)
        return out

    def dense(self, given, images):
        self.switch(use_vision_predictor=False, use_text_predictor=False)
        ids, (both, mask) = given["b1.input_ids"], (given["b2.input_ids"], given["b2.attention_mask"])
        out, watch = self.call(ids, images[:1])
        arrays = {f"b1.hidden_after_layer_{i}": hidden for i, hidden in watch.layers.items()}
        arrays["b1.logits"] = host(out.logits)[:, -12:]
        if self.exact:
            arrays["b1.greedy_ids"] = self.greedy(ids, images[:1], 8)["greedy_ids"]
        out, watch = self.call(both, images, attention_mask=self.torch.from_numpy(mask).to(self.device))
        arrays["b2.hidden_after_last_layer"] = watch.layers[max(watch.layers)]
        end = int(mask[1].sum()) + host(out.logits).shape[1] - both.shape[1]
        arrays["b2.sample1_last_logits"] = host(out.logits)[1, end - 1]
        return arrays

    def prefill(self, given, images, instruct=False):
        self.switch(use_instruct_predictor=instruct)
        ids = given["input_ids"][:1]
        out, watch = self.call(ids, images[:1])
        caches, lengths = out.past_key_values
        arrays = self.chosen(watch, 1)
        arrays["position_ids_before"], arrays["position_ids_after"] = watch.positions[0], watch.positions[self.first]
        arrays.update({f"hidden_after_layer_{i}": hidden for i, hidden in watch.layers.items()})
        arrays["last_logits"] = host(out.logits[:, -1])
        arrays.update(self.lengths(caches, lengths))
        if instruct:
            judged = watch.predicted[INSTRUCT].reshape(1, -1, 2)
            arrays["instruct_logits"] = judged
            arrays["instruct_keep_index"] = np.flatnonzero(judged[0, :, 0] > judged[0, :, 1])[None].astype(np.int32)
            return arrays
        arrays["logits"] = host(out.logits)
        for i in (self.first - 1, len(caches) - 1):
            arrays[f"key_{i}"], arrays[f"value_{i}"] = host(caches[i][0]), host(caches[i][1])
        return arrays

    def feed(self, cache, answer):
        """An answer token by token; what each step gives, and the cache after it."""
        steps = []
        for t in range(answer.shape[1]):
            out, watch = self.call(answer[:, t : t + 1], past_key_values=cache)
            cache = out.past_key_values
            hidden = np.stack([watch.layers[i][:, 0] for i in sorted(watch.layers)], 1)[:, None]
            row = {"logits": host(out.logits), "hidden": hidden, "position": watch.positions[0]}
            row["text_decision"] = np.ones((len(answer), 1), bool)  # without the predictor every token is stored
            if OUTPUT in watch.predicted:
                judged = watch.predicted[OUTPUT].reshape(len(answer), 1, 2)
                row.update({"text_logits": judged, "text_decision": judged[..., 0] > judged[..., 1]})
            steps.append({**row, **self.lengths(*cache)})
        join = {name: np.stack if name.startswith("cache") else partial(np.concatenate, axis=1) for name in steps[0]}
        return {name: how([step[name] for step in steps]) for name, how in join.items()}, cache

    def decode(self, given, images):
        ids, answer = given["input_ids"], given["answer_ids"]
        arrays, alone = {}, []
        for row in range(len(ids)):
            self.switch()
            out, _ = self.call(ids[row : row + 1], images[row : row + 1])
            last = host(out.logits[:, -1])
            alone.append({**self.feed(out.past_key_values, answer[row : row + 1])[0], "prefill_last_logits": last})
        arrays.update({f"b1.{name}": alone[0][name] for name in (*STEP, "hidden") if name in alone[0]})
        if len(ids) > 1 and self.exact:
            for name in [name for name in (*STEP[:3], "prefill_last_logits") if name in alone[0]]:
                arrays[f"b2clean.{name}"] = np.concatenate([one[name] for one in alone])
            arrays["b2clean.cache_true_len"] = np.concatenate([one["cache_true_len"] for one in alone], 2)
            self.switch()
            out, watch = self.call(ids, images)
            arrays.update({f"b2.{k}": x for k, x in self.chosen(watch, len(ids)).items() if k == "image_keep_index"})
            arrays["b2.prefill_last_logits"] = host(out.logits[:, -1])
            both, cache = self.feed(out.past_key_values, answer)
            arrays.update({f"b2.{name}": both[name] for name in STEP if name in both})
            arrays["b2.final_key_last_layer"] = host(cache[0][-1][0])
        self.switch()
        arrays.update({f"gen.{name}": x for name, x in self.greedy(ids[:1], images[:1], 10).items()})
        return arrays

    def nocache(self, given, images):
        ids, answer = given["input_ids"], given["answer_ids"]
        steps = [step for step in STEPS if step <= answer.shape[1]]
        arrays, clean = {}, []
        for rows in sorted({1, len(ids) if hasattr(self.model.model, IMAGE) else 1}):  # it fails for more without one
            self.switch()  # the first call, without an answer, is where the code notes where answers begin
            for fed in steps:
                row = np.concatenate([ids[:rows], answer[:rows, :fed]], 1)
                out, watch = self.call(row, images[:rows], use_cache=False)
                after = np.broadcast_to(watch.positions[self.first], (rows, watch.layers[self.first].shape[1]))
                start = watch.layers[0].shape[1] - fed
                kept = [positions[:-1][positions[:-1] >= start] - start for positions in after]
                found = {"last_logits": host(out.logits[:, -1]), "position_ids_after": after}
                if OUTPUT in watch.predicted:
                    found["text_logits"] = watch.predicted[OUTPUT].reshape(rows, -1, 2)
                found["kept_answer_index"] = np.stack(kept).astype(np.int32)
                arrays.update({f"b{rows}.j{fed:02d}.{name}": x for name, x in found.items()})
        for row in range(len(ids)):
            self.switch()
            out, _ = self.call(ids[row : row + 1], images[row : row + 1])
            last = host(out.logits[:, -1:])
            fed = self.feed(out.past_key_values, answer[row : row + 1])[0]["logits"]
            clean.append(np.concatenate([last, fed], 1)[:, steps])
        arrays["clean_kv_logits"] = np.concatenate(clean)
        return arrays, {"steps": steps}

    def turns(self, given, images, instruct):
        self.switch(use_instruct_predictor=instruct)
        out, _ = self.call(given["input_ids"], images[:1])
        arrays = {"prefill_last_logits": host(out.logits[:, -1])}
        arrays["prefill_cache_len"] = self.lengths(*out.past_key_values)["cache_len"]
        steps, cache = self.feed(out.past_key_values, given["answer1_ids"])
        arrays.update({f"answer1.{name}": steps[name] for name in STEP if name in steps})
        out, watch = self.call(given["instruction2_ids"], past_key_values=cache)
        kept = np.ones(given["instruction2_ids"].shape, bool)
        if instruct:
            judged = watch.predicted[INSTRUCT].reshape(1, -1, 2)
            kept = judged[..., 0] > judged[..., 1]
            kept[:, -1] = True
            arrays["instruction2.logits_instruct"] = judged
        arrays.update({"instruction2.text_decision": kept, "instruction2.logits": host(out.logits)})
        arrays["instruction2.position_ids"] = watch.positions[0]
        arrays.update({f"instruction2.hidden_after_layer_{i}": hidden for i, hidden in watch.layers.items()})
        arrays.update({f"instruction2.{name}": x for name, x in self.lengths(*out.past_key_values).items()})
        steps, _ = self.feed(out.past_key_values, given["answer2_ids"])
        arrays.update({f"answer2.{name}": steps[name] for name in STEP if name in steps})
        return arrays

    def greedy(self, ids, image, count):
        options = {"do_sample": False, "max_new_tokens": count, "eos_token_id": self.model.config.vocab_size}
        options.update({"use_cache": True, "return_dict_in_generate": True, "output_scores": True})  # no id ends it
        with self.torch.no_grad():
            made = self.model.generate(self.tensor(ids), images=self.tensor(image), **options)
        logits = np.stack([host(score) for score in made.scores], 1)
        return {"greedy_ids": host(made.sequences)[:, -count:], "logits": logits}

    def record(self, case, given, images):
        """Outputs and facts of one case."""
        number = case.split("_")[0]
        if number == "07":
            return self.nocache(given, images)
        if number in ("02", "04", "06"):
            return {"02": self.predictors, "04": self.dense, "06": self.decode}[number](given, images), {}
        if number in ("05", "08", "08b"):
            return self.prefill(given, images, instruct=number != "05"), {}
        return self.turns(given, images, instruct=number == "09"), {}


CASES = ("02_predictors", "04_dense", "05_prefill_kv", "06_decode_kv", "07_decode_nocache", "08_instruct_prefill")
CASES += ("08b_instruct_prefill_multiround", "09_multi_turn_kv", "09b_multi_turn_kv_no_instruct")


def write(out, case, inputs, outputs, info, sparse, rows):
    arrays = {**inputs, **outputs}
    np.savez(out / "cases" / f"{case}.npz", **arrays)
    described = {
        key: {"role": "input" if key in inputs else "output", "shape": list(np.shape(value)), "description": ""}
        for key, value in arrays.items()
    }
    if rows is not None:
        info = {**info, "images": {"pixel_values": {"file": "00_images.npz", "array": "a", "rows": rows}}}
    document = {"case": case, "summary": "recorded by record_official.py", "notes": [], "info": info}
    document.update({"effective_sparse_config": sparse, "arrays": described})
    (out / "cases" / f"{case}.json").write_text(json.dumps(document, indent=1))


def earlier(folder):
    """Case -> its inputs and the rows of its images, and all pixels."""
    with np.load(folder / "cases" / "00_images.npz") as file:
        pixels = file["a"]
    found = {}
    for case in CASES:
        if not (folder / "cases" / f"{case}.json").is_file():
            continue
        described = json.loads((folder / "cases" / f"{case}.json").read_text())
        with np.load(folder / "cases" / f"{case}.npz") as file:
            inputs = {name: file[name] for name, of in described["arrays"].items() if of["role"] == "input"}
        images = list(described["info"].get("images", {}).values())
        found[case] = inputs, images[0]["rows"] if images else None
    return found, pixels


def from_pictures(args, recorder):
    """The same of the user's pictures and question; the answers are the model's own."""
    from llava.constants import IMAGE_TOKEN_INDEX
    from llava.conversation import conv_templates
    from llava.mm_utils import process_images, tokenizer_image_token
    from PIL import Image
    from transformers import AutoTokenizer

    model = recorder.model
    tokenizer = AutoTokenizer.from_pretrained(args.checkpoint, use_fast=False)

    def prompt(*said):
        talk = conv_templates["v1"].copy()
        for i, text in enumerate((f"<image>\n{args.question}", *said, None)):
            talk.append_message(talk.roles[i % 2], text)
        return np.array([tokenizer_image_token(talk.get_prompt(), tokenizer, IMAGE_TOKEN_INDEX)], np.int32)

    pictures = [Image.open(path).convert("RGB") for path in args.image]
    pixels = process_images(pictures, model.get_vision_tower().image_processor, model.config)
    pixels = np.stack([np.asarray(x) for x in pixels]).astype(np.float32)
    pixels, rows = (np.repeat(pixels, 2, 0), 2) if len(pixels) == 1 else (pixels[:2], 2)
    ids = np.repeat(prompt(), rows, 0)
    recorder.switch()
    answers = [recorder.greedy(ids[:1], pixels[row : row + 1], args.tokens)["greedy_ids"] for row in range(rows)]
    short = ids.copy()
    short[1:, -5:] = 0
    rng = np.random.default_rng(0)
    width, count = model.config.hidden_size, model.get_vision_tower().num_patches
    vision = {"vision_x": rng.standard_normal((2, count, width), np.float32)}
    vision["policy_partial"] = rng.integers(0, 2, (2, count, 1)).astype(np.float32)
    vision["text_x"] = rng.standard_normal((2, 9, width), np.float32)
    follow = tokenizer(f"{tokenizer.eos_token}USER: {args.second} ASSISTANT:", add_special_tokens=False).input_ids
    turns = {"input_ids": ids[:1], "answer1_ids": answers[0][:, :5], "answer2_ids": answers[0][:, 5:10]}
    turns["instruction2_ids"] = np.array([follow], np.int32)
    said = tokenizer.decode(answers[0][0].tolist(), skip_special_tokens=True)
    dense = {"b1.input_ids": ids[:1], "b2.input_ids": short, "b2.attention_mask": short != 0}
    both = {"input_ids": ids, "answer_ids": np.concatenate(answers)}
    given = [vision, dense, {"input_ids": ids[:1]}, both, both, {"input_ids": ids[:1]}]
    given += [{"input_ids": prompt(said, args.second)}, turns, turns]
    rows = [None, *[[0, 1]] * (len(CASES) - 1)]
    return dict(zip(CASES, zip(given, rows))), pixels  # noqa: B905 (for old Pythons)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--official", type=Path, required=True, help="checkout of the official repository")
    for name in ("--checkpoint", "--vision-tower", "--out"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--again", type=Path, help="a recording whose inputs are taken")
    parser.add_argument("--image", nargs="+", default=[], help="one or two")
    parser.add_argument("--question", default="Describe the picture.")
    parser.add_argument("--second", default="And what else?", help="the second question of a conversation")
    parser.add_argument("--tokens", type=int, default=12, help="of the answers, 10 or more")
    parser.add_argument("--case", nargs="+", default=[], help="only these, by number such as 05")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    if bool(args.image) == bool(args.again) or len(args.image) > 2 or args.tokens < 10:
        parser.error("give either one or two --image or --again, and at least 10 --tokens")
    taken = [args.out / name for name in ("cases", "checkpoint", "vision_tower") if (args.out / name).exists()]
    if taken or args.out.is_file():
        parser.error(f"{(taken or [args.out])[0]} is there already; give a new folder as --out")
    file = args.checkpoint / "config.json"
    values = json.loads(file.read_text()) if file.is_file() else {}
    if not values.get("sparse_config"):
        parser.error(f"{file} has no sparse_config; only a Dynamic-LLaVA is recorded: give its folder as --checkpoint")
    sys.path.insert(0, str(args.official))
    import torch
    from llava.model import dynamic_llava_arch
    from llava.model.language_model.dynamic_llava_llama import DynamicLlavaConfig, DynamicLlavaLlamaForCausalLM

    config = DynamicLlavaConfig(**{**values, "mm_vision_tower": str(args.vision_tower.resolve())})
    dtype = getattr(torch, args.dtype)
    model = DynamicLlavaLlamaForCausalLM.from_pretrained(
        args.checkpoint, config=config, torch_dtype=dtype, attn_implementation="sdpa"
    ).eval()
    model.get_vision_tower().load_model()
    model.to(args.device, dtype)
    if args.again:
        dynamic_llava_arch.special_text.update(json.loads((args.again / "manifest.json").read_text())["special_text"])
    recorder = Recorder(model, dtype, args.device)
    cases, pixels = earlier(args.again) if args.again else from_pictures(args, recorder)
    (args.out / "cases").mkdir(parents=True)
    shutil.copytree(args.checkpoint, args.out / "checkpoint")
    shutil.copytree(args.vision_tower, args.out / "vision_tower")
    manifest = {"special_text": dict(dynamic_llava_arch.special_text), "dtype": args.dtype}
    manifest["suggested_tolerance"] = f"{TOLERANCE[args.dtype]} of the largest value, or of 1 if that is more"
    (args.out / "manifest.json").write_text(json.dumps(manifest))
    np.savez(args.out / "cases" / "00_images.npz", a=pixels)
    for case, (inputs, rows) in cases.items():
        number = case.split("_")[0]
        if args.case and number not in args.case:
            continue
        if args.dtype != "float32" and number in FLOAT32_ONLY:
            print(f"{case}: left out, it is recorded in float32 only")
            continue
        if number in ("08", "08b", "09") and not hasattr(model.model, INSTRUCT):
            print(f"{case}: left out, the checkpoint has no predictor of instructions")
            continue
        outputs, info = recorder.record(case, inputs, None if rows is None else pixels[rows])
        if outputs:  # 02 has none where there are no predictors
            write(args.out, case, inputs, outputs, info, recorder.sparse, rows)
        print(f"{case}: {len(outputs)} arrays", flush=True)


if __name__ == "__main__":
    main()
