"""`dynllava bench` on a CPU at small sizes: what is measured, never how fast it is."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from dynllava_jax.benchmark import attention, generation, step, timing
from dynllava_jax.benchmark.shapes import PAPER
from dynllava_jax.cli.main import main
from dynllava_jax.config.presets import PRESETS
from tests.benchmark import document


def bench(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict[str, Any]]:
    assert main(["bench", *words, "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


QUICK = ("--round", "0.001")


def test_attention(capsys: pytest.CaptureFixture[str]) -> None:
    records = bench(capsys, "attention", "--shape", "1,2,1,32,16", *QUICK)
    by_name = {(record["operation"], record["implementation"]): record for record in records}
    for operation in ("causal", "policy", "decode"):
        ours, theirs = by_name[operation, "xla"], by_name[operation, "jax_xla"]
        assert "failed" in by_name[operation, "jax_cudnn"]
        assert ours["ratio_to_jax_cudnn"] is None
        assert ours["forward_seconds"] > 0
        ratio = theirs["forward_seconds"] / ours["forward_seconds"]
        assert ours["ratio_to_jax_xla"]["forward"] == pytest.approx(ratio)
        assert (ours["ratio_to_chunked"] is None) == (operation == "decode")
        assert ("both_seconds" in ours) == (operation != "decode")
    pairs = 32 * 33 / 2
    causal = by_name["causal", "xla"]
    assert causal["forward_tflops"] * causal["forward_seconds"] * 1e12 == pytest.approx(4 * 2 * 16 * pairs)
    assert causal["both_tflops"] * causal["both_seconds"] * 1e12 == pytest.approx(3.5 * 4 * 2 * 16 * pairs)
    assert not [name for _, name in by_name if "interpret" in name]


def test_attention_as_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "attention", "--shape", "1,1,1,8,8", "--operation", "decode", *QUICK]) == 0
    out, err = capsys.readouterr()
    numbers = r" +[\d.]+ ms +[\d.]+ TFLOP/s +[\d.]+% of matmul +[\d.]+ GB/s +[\d.]+% of copy"
    line = rf"decode 1,1,1,8,8 +xla +forward{numbers}, [\d.]+ x as fast as jax_xla"
    assert re.fullmatch(line, out.splitlines()[-1])
    assert "interpret-mode kernels are never timed" in err
    assert "not here" in out


def test_attention_writes_the_keys_of_the_document(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(attention, "measure", lambda *_, least: 0.5)  # cuDNN would be missing here
    records = bench(capsys, "attention", "--shape", "1,2,1,32,16", "--operation", "policy", *QUICK)
    assert not [record for record in records if "failed" in record]
    assert document.keys("attention") <= document.names(records)


def test_a_file_holds_the_records_of_what_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([0.5, 0.5, 0.5])

    def stopped(*_: Any, least: float) -> float:
        if (found := next(seconds, None)) is None:
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(attention, "measure", stopped)
    file = tmp_path / "records.json"
    words = ["--shape", "1,1,1,8,8", "--operation", "policy", "--json", str(file), *QUICK]
    assert main(["bench", "attention", *words]) == 130
    (record,) = [json.loads(line) for line in file.read_text().splitlines()]
    assert record["implementation"] == "jax_xla"


@pytest.mark.slow
@pytest.mark.parametrize("cache", [True, False])
def test_generation_dynamic_and_dense(cache: bool, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--preset", "tiny", "--random-weights", "--batch", "2", "--prompt", "10", "--new-tokens", "5"]
    words += [] if cache else ["--no-cache"]
    records = bench(capsys, "generate", *words, "--dtype", "float32", *QUICK)
    dynamic, dense, related = records
    assert (dynamic["mode"], dense["mode"], related["mode"]) == ("dynamic", "dense", "dynamic_to_dense")
    assert document.keys("generate") <= document.names(records)
    ratio = dynamic["prefill_seconds"] / dense["prefill_seconds"]
    assert related["prefill_time_over_flops"] * related["prefill_flops_ratio"] == pytest.approx(ratio)
    assert (dynamic["kept_image_tokens"], dense["kept_image_tokens"]) == (6, 16)
    assert dense["kept_output_share"] == 1
    for record in (dynamic, dense):
        assert record["cached"] == cache
        assert record["tower_seconds"] > 0
        assert record["prefill_seconds"] > 0
        assert record["ms_per_token"] == pytest.approx(1e3 * record["decode_seconds"] / 4)
        assert record["tokens_per_second"] == pytest.approx(2 * 4 / record["decode_seconds"])


def test_generation_of_a_checkpoint(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", str(checkpoint), "--prompt", "8", "--new-tokens", "3", "--images", "0", "--dense"]
    (record,) = bench(capsys, "generate", *words)
    assert record["mode"] == "dense"
    assert record["tower_seconds"] is None


@pytest.mark.slow
def test_training_step(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--preset", "tiny", "--batch", "2", "--length", "48", "--mesh", "data=1", "--steps", "2", "--lora", "4"]
    (record,) = bench(capsys, "train", *words, "--dtype", "float32", *QUICK)
    assert document.keys("train") <= document.names([record])
    assert record["lora"] == 4
    assert record["tokens_per_second"] == pytest.approx(2 * 48 / record["step_seconds"])
    assert record["flops"] / record["step_seconds"] / 1e12 == pytest.approx(record["tflops_per_device"])
    assert record["mfu"] is None


def test_the_papers_shapes() -> None:
    assert {shape.preset for shape in PAPER.values()} <= set(PRESETS)
    assert {(name, one.shape.batch, one.shape.new, one.cached) for name, one in PAPER.items()} == {
        *(((f"table4-{size}k", 8, 1000 * size, False)) for size in (1, 2, 4)),
        *(((f"table4-{size}k-cache", 8, 1000 * size, True)) for size in (1, 2, 4)),
        ("table14", 1, 1000, True),
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["attention", "--shape", "4,32"], "--shape 4,32 is not BATCH,HEADS,KV_HEADS,LENGTH,HEAD_DIM."),
        (["attention", "--shape", "1,3,2,8,8"], "the heads a multiple of the kv heads"),
        (["attention", "--shape", "1,1,1,8,8", "--implementation", "cuda", *QUICK], "no implementation 'cuda'"),
        (["generate", "--preset", "tiny"], "tiny has no weights here; add --random-weights"),
        (["generate", "--paper", "table5"], "--paper table5 is none of table4-1k,"),
        (["generate", "--preset", "tiny", "--random-weights", "--batch", "0"], "--batch must be 1 or more, not 0."),
        (["generate", "--model", "demo", "--prompt", "0"], "--prompt must be 1 or more, not 0."),
        (["generate", "--model", "demo", "--new-tokens", "1"], "--new-tokens must be 2 or more, not 1."),
        (["generate", "--preset", "", "--random-weights"], "There is no preset ''; there are "),
        (
            ["generate", "--preset", "tiny", "--random-weights", "--no-cache", "--products", "triton"],
            "--products is for decoding with a cache; leave it out where there is none.",
        ),
        (["train", "--preset", "tiny", "--length", "16"], "1 images take 16 of 16 tokens; at least 2 must be left"),
        (["train", "--preset", "tiny", "--images", "-1"], "--images must be 0 or more, not -1."),
        (["attention", "--round", "nan"], "--round must be a number of seconds, 0 or more, not nan."),
        (
            ["attention", "--implementation", "tpu"],
            "attention: tpu runs on a tpu only, and this is a cpu; name another",
        ),
        (["attention", "--implementation", "tpu-interpret"], "tpu-interpret is run by an interpreter"),
        (["generate", "--preset", "tiny", "--random-weights", "--round", "-1"], "0 or more, not -1.0."),
        (["generate", "--preset", "tiny", "--random-weights", "--products", "cuda"], "no implementation 'cuda'"),
        (
            ["generate", "--model", "demo", "--prompt", "1500"],
            "2076 prompt tokens and 128 of the answer do not fit demo, whose context is 2048; ask for fewer",
        ),
        (
            ["generate", "--model", "demo", "--no-cache", "--prompt", "1400", "--dense"],
            "1976 prompt tokens and 128 of the answer do not fit demo",
        ),
        (["train", "--preset", "tiny", "--length", "32", "--round", "inf"], "0 or more, not inf."),
        (["train", "--preset", "tiny", "--length", "32", "--steps", "0"], "--steps must be 1 or more, not 0."),
        (["train", "--preset", "tiny", "--length", "32", "--mesh", "rows=1"], "Mesh axis 'rows' is unknown"),
        (
            ["train", "--preset", "tiny", "--length", "32", "--mesh", "data=1", "--attention", "tpu-interpret"],
            "tpu-interpret is run by an interpreter",
        ),
        (["train", "--preset", "tiny", "--lora", "0"], "LoraConfig.rank must be above 0, not 0."),
        (["walk"], "invalid choice: 'walk'"),
    ],
)
def test_bad_input_is_one_line(
    words: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(timing, "machine", lambda *_, least: pytest.fail("the device was at work"))
    assert main(["bench", *words]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize("kind", ["generate", "train"])
def test_too_little_memory_says_what_to_do(
    kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 80 bytes.")

    monkeypatch.setattr(timing, "machine", lambda *_, least: timing.Machine("cpu", "cpu", 1e12, 1e9))
    monkeypatch.setattr(generation, "bench_generation", full)
    monkeypatch.setattr(step, "bench_step", full)
    words = {"generate": ["--model", "demo"], "train": ["--preset", "tiny", "--mesh", "data=1"]}[kind]
    assert main(["bench", kind, *words]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "too little memory (RESOURCE_EXHAUSTED: Out of memory allocating 80 bytes.); ask for less with --b" in error


def test_weights_that_do_not_fit_name_options_that_there_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("dynllava_jax.inference.memory.free_bytes", lambda devices: 10**9)
    assert main(["bench", "generate", "--random-weights"]) == 2
    error = capsys.readouterr().err
    assert error.endswith("GiB free; use bfloat16 for --dtype, or a smaller --preset.\n")
