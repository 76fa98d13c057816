"""tools/record_official.py and a model with only some of the predictors; a stand-in takes its place."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tools import record_official
from tools.record_official import IMAGE, INSTRUCT, OUTPUT

torch = pytest.importorskip("torch")

PATCHES, WIDTH, VOCAB = 5, 4, 7


class Layer(torch.nn.Module):
    def forward(self, x: Any, position_ids: Any) -> tuple[Any]:
        return (x + 1,)


class StandIn:
    """Two layers without attention, and the predictors named; only what the recorder looks at is there."""

    def __init__(self, *predictors: str):
        self.config = SimpleNamespace(sparse_config={"sparse_layer": 1, "vision_keep_rate": 0.5}, vocab_size=VOCAB)
        self.model: Any = torch.nn.Module()
        self.model.config = SimpleNamespace()
        self.model.layers = torch.nn.ModuleList([Layer(), Layer()])
        for name in predictors:
            setattr(self.model, name, Predictor())

    def __call__(self, input_ids: Any, use_cache: bool, images: Any = None, past_key_values: Any = None) -> Any:
        rows, tokens = input_ids.shape
        x = torch.ones(rows, tokens, WIDTH)
        for layer in self.model.layers:
            x = layer(x, position_ids=torch.arange(tokens))[0]
        if images is not None and hasattr(self.model, IMAGE):
            getattr(self.model, IMAGE)(torch.ones(rows, PATCHES, WIDTH))
        if past_key_values is not None and hasattr(self.model, OUTPUT):
            getattr(self.model, OUTPUT)(x)
        cache = [(torch.zeros(rows, 1, tokens, WIDTH),) * 2] * 2, [torch.full((rows,), tokens)] * 2
        return SimpleNamespace(logits=torch.zeros(rows, tokens, VOCAB), past_key_values=cache)

    def generate(self, ids: Any, max_new_tokens: int, eos_token_id: int, **options: Any) -> Any:
        """Counts down from the last id of the vocabulary."""
        drawn = [VOCAB - 1 - step for step in range(max_new_tokens)]
        drawn = drawn[: drawn.index(eos_token_id) + 1 if eos_token_id in drawn else None]
        return SimpleNamespace(sequences=torch.tensor([[1, *drawn]]), scores=[torch.zeros(1, VOCAB)] * len(drawn))


class Predictor(torch.nn.Module):
    def forward(self, x: Any, policy: Any = None) -> Any:
        return torch.stack([x[..., 0].cumsum(-1), torch.full(x.shape[:-1], 3.0)], -1)


def recorder(*predictors: str) -> Any:
    return record_official.Recorder(StandIn(*predictors), torch.float32, "cpu")


@pytest.mark.parametrize("predictors", [(), (IMAGE,), (OUTPUT,), (IMAGE, OUTPUT, INSTRUCT)])
def test_what_is_there_is_recorded(predictors: tuple[str, ...]) -> None:
    ids, image = np.array([[1, -200, 5, 6]], np.int32), np.zeros((1, 3, 2, 2), np.float32)
    given = {
        "vision_x": np.ones((2, PATCHES, WIDTH), np.float32),
        "policy_partial": np.ones((2, PATCHES, 1), np.float32),
    }
    alone = recorder(*predictors).predictors({**given, "text_x": np.ones((2, 3, WIDTH), np.float32)}, None)
    wanted = {IMAGE: "vision_logits_partial", OUTPUT: "output_text_logits", INSTRUCT: "instruct_logits"}
    assert {name for name, array in wanted.items() if array in alone} == set(predictors)

    prompt = recorder(*predictors).prefill({"input_ids": ids}, image)
    assert ("image_keep_index" in prompt) == (IMAGE in predictors)
    assert {"logits", "last_logits", "hidden_after_layer_1", "cache_len", "key_0"} <= prompt.keys()
    if IMAGE in predictors:
        np.testing.assert_array_equal(prompt["image_keep_index"], [[3, 4]])  # int(5 / 2) of rising scores


@pytest.mark.parametrize("predictors", [(IMAGE,), (OUTPUT,)])
def test_without_their_predictor_all_tokens_of_an_answer_are_kept(predictors: tuple[str, ...]) -> None:
    steps, _ = recorder(*predictors).feed(([], []), np.array([[3, 4], [5, 6]], np.int32))
    assert {"logits", "hidden", "position", "cache_len", "cache_true_len"} <= steps.keys()
    assert ("text_logits" in steps) == (OUTPUT in predictors)
    np.testing.assert_array_equal(steps["text_decision"], np.full((2, 2), OUTPUT not in predictors))


def test_no_token_ends_an_answer_early() -> None:
    found = recorder().greedy(np.array([[1, -200, 5]], np.int32), np.zeros((1, 3, 2, 2), np.float32), 3)
    np.testing.assert_array_equal(found["greedy_ids"], [[6, 5, 4]])


def test_what_is_watched_is_let_go() -> None:
    model = StandIn(IMAGE, OUTPUT)
    with record_official.Watch(model) as watch:
        model(torch.ones(1, 3), use_cache=True, images=torch.ones(1))
    assert (set(watch.layers), set(watch.predicted)) == ({0, 1}, {IMAGE})
    model(torch.ones(1, 3), use_cache=True, past_key_values=())
    assert OUTPUT not in watch.predicted
    assert not any(part._forward_hooks for part in model.model.modules())


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs the command, which imports nothing of the official code before it has looked at its options."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps({"sparse_config": {"sparse_layer": 1}}))
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> str:
        needed = ["--official", "repo", "--checkpoint", "model", "--vision-tower", "tower", "--out", "out"]
        monkeypatch.setattr("sys.argv", ["record_official.py", *needed, *words])
        with pytest.raises(SystemExit) as ended:
            record_official.main()
        assert ended.value.code == 2
        return capsys.readouterr().err.splitlines()[-1].removeprefix("record_official.py: error: ")

    return run


def test_more_pictures_than_it_takes(refused: Callable[..., str]) -> None:
    assert "give either one or two --image or --again" in refused("--image", "a.jpg", "b.jpg", "c.jpg")


def test_a_base_llava_has_nothing_that_is_dropped(refused: Callable[..., str]) -> None:
    for values in ({"model_type": "llava_llama"}, {"sparse_config": None}):
        Path("model/config.json").write_text(json.dumps(values))
        assert refused("--image", "a.jpg") == (
            "model/config.json has no sparse_config; only a Dynamic-LLaVA is recorded: give its folder as --checkpoint"
        )
    assert refused("--image", "a.jpg", "--checkpoint", "nowhere").startswith("nowhere/config.json has no sparse_config")


@pytest.mark.parametrize("name", ["cases", "checkpoint", "vision_tower"])
def test_a_recording_is_not_written_over(refused: Callable[..., str], name: str) -> None:
    Path("out", name).mkdir(parents=True)
    assert refused("--image", "a.jpg") == f"out/{name} is there already; give a new folder as --out"
    Path("file").touch()
    assert refused("--image", "a.jpg", "--out", "file") == "file is there already; give a new folder as --out"
