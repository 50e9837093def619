"""Loading models: folders and GGUF files of a few kilobytes, and what is said when something is wrong with them."""

from __future__ import annotations

import json
import shutil
import struct
import threading
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.fake_hub import FakeHub, Repository
from tests.tiny_models import make_tiny_llama
from uqchat import models, weights
from uqchat.errors import InputError, ModelCancelledError, ModelError
from uqchat.loading import LoadProgress
from uqchat.models import known_models, load_model


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return make_tiny_llama(tmp_path / "tiny")


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def test_a_folder_loads_ready_to_answer(tiny: Path) -> None:
    seen: list[LoadProgress] = []
    loaded = load_model(str(tiny), device="cpu", dtype="float32", on_progress=seen.append)
    assert (loaded.name, loaded.device, loaded.dtype, loaded.quantization) == (str(tiny), "cpu", "float32", None)
    assert loaded.context_window == 128 and loaded.notes == ()
    assert not loaded.model.training and not any(p.requires_grad for p in loaded.model.parameters())
    assert [p.stage for p in seen] == ["find", "load"]
    ids = loaded.tokenizer("hi", return_tensors="pt")
    assert loaded.model(**ids).logits.shape == (1, 2, 259)


def test_float32_weights_do_not_depend_on_the_file_any_more(tiny: Path) -> None:
    loaded = load_model(str(tiny), device="cpu", dtype="float32")
    before = loaded.model.lm_head.weight.clone()
    with (tiny / "model.safetensors").open("r+b") as file:
        file.seek(4000)
        file.write(b"\xff" * 4000)
    assert torch.equal(loaded.model.lm_head.weight, before)


@pytest.mark.parametrize(
    ("given", "chosen"),
    [("fp32", "float32"), ("bf16", "bfloat16"), ("BFloat16", "bfloat16"), (torch.float16, "float16")],
)
def test_dtype_may_be_a_name_or_a_torch_dtype(tiny: Path, given: object, chosen: str) -> None:
    loaded = load_model(str(tiny), device="cpu", dtype=given)
    assert loaded.dtype == chosen and str(loaded.model.dtype) == f"torch.{chosen}"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dtype": "int3"}, "dtype 'int3'.*float32"),
        ({"device": "tpu"}, "Device 'tpu' is not available; this machine has: .*cpu"),
        ({"device": "cuda:99"}, "Device 'cuda:99' is not available"),
        ({"quantization": "awq"}, "'awq' is not known; choose none or one of int8, bnb-8bit, bnb-4bit"),
    ],
)
def test_a_wrong_option_is_named_with_what_is_allowed(tiny: Path, options: dict[str, str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        load_model(str(tiny), **options)


def test_a_dtype_is_chosen_by_what_the_cpu_multiplies_natively(monkeypatch: pytest.MonkeyPatch) -> None:
    from uqchat.placement import choose_dtype

    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    assert choose_dtype(None, "cpu") == torch.float32
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert choose_dtype(None, "cpu") == torch.bfloat16
    assert choose_dtype(None, "mps") == torch.float16


def test_int8_keeps_the_logits_close(tiny: Path) -> None:
    plain = load_model(str(tiny), device="cpu", dtype="float32")
    small = load_model(str(tiny), device="cpu", dtype="float32", quantization="int8")
    assert small.quantization == "int8"
    for length in (3, 40):  # few rows and many rows take different paths
        ids = torch.arange(length)[None] + 5
        torch.testing.assert_close(small.model(ids).logits, plain.model(ids).logits, atol=0.01, rtol=0.05)


@pytest.mark.parametrize("quantization", ["bnb-8bit", "bnb-4bit"])
def test_bitsandbytes_quantises_on_the_cpu(tmp_path: Path, quantization: str) -> None:
    pytest.importorskip("bitsandbytes")
    loaded = load_model(
        str(make_tiny_llama(tmp_path / "tiny", hidden_size=64)), device="cpu", quantization=quantization
    )
    assert loaded.quantization == quantization
    assert loaded.model(torch.tensor([[5, 6]])).logits.isfinite().all()


def test_shapes_that_bitsandbytes_cannot_take_are_told_at_load(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which shapes those are depends on the processor."""
    layers = pytest.importorskip("bitsandbytes").nn

    def fail(*args: object) -> None:
        raise RuntimeError("blocksize")

    monkeypatch.setattr(layers.Linear4bit, "forward", fail)
    with pytest.raises(ModelError, match="bnb-4bit does not work for this model on cpu"):
        load_model(str(tiny), device="cpu", quantization="bnb-4bit")


def test_bitsandbytes_missing_says_what_to_install(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install bitsandbytes"):
        load_model(str(tiny), device="cpu", quantization="bnb-4bit")


def test_a_model_without_a_template_gets_a_stated_plain_one(tmp_path: Path) -> None:
    loaded = load_model(str(make_tiny_llama(tmp_path / "tiny", has_template=False)))
    assert any("no chat template" in note for note in loaded.notes)
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    text = loaded.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "System: Be kind.\n\nUser: Hi\n\nAssistant:"


def test_an_unstated_context_window_is_assumed_with_a_note() -> None:
    from transformers import GPT2Config, LlamaConfig, MambaConfig

    assert models.context_window(LlamaConfig(max_position_embeddings=77)) == (77, ())
    assert models.context_window(GPT2Config(n_positions=55)) == (55, ())
    window, notes = models.context_window(MambaConfig())
    assert window == 2048 and "2,048 tokens are assumed" in notes[0]


def test_no_such_folder_or_file(tmp_path: Path) -> None:
    for name, said in (
        (str(tmp_path / "nothing"), "There is no folder"),
        ("./nothing", "There is no folder"),
        (str(tmp_path / "nothing.gguf"), "There is no GGUF file"),
        (str(tmp_path), "holds no model: config.json is missing"),
    ):
        with pytest.raises(ModelError, match=said):
            load_model(name)


def test_a_folder_of_gguf_files_or_an_adapter_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").touch()
    with pytest.raises(ModelError, match="name one of them: a.gguf"):
        load_model(str(tmp_path))
    (tmp_path / "adapter_config.json").touch()
    with pytest.raises(ModelError, match="holds an adapter"):
        load_model(str(tmp_path))


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = make_tiny_llama(tmp_path / "sharded", max_shard_size="10KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1 and load_model(str(folder)).context_window == 128
    shards[1].unlink()
    with pytest.raises(ModelError, match=f"1 of {len(shards)} weight files.*{shards[1].name}"):
        load_model(str(folder))


def test_weights_that_the_files_lack_are_not_made_up(tiny: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(tiny / "model.safetensors")
    tensors.pop("model.layers.1.mlp.down_proj.weight")
    save_file(tensors, tiny / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="1 weights are missing.*down_proj"):
        load_model(str(tiny))


def test_broken_files_are_named(tiny: Path) -> None:
    path = tiny / "model.safetensors"
    whole = path.read_bytes()
    for content, said in (
        (whole[:-100], "is cut off"),
        (b"nonsense" * 9, "is not a safetensors file"),
        (b"", "is not"),
    ):
        path.write_bytes(content)
        with pytest.raises(ModelError, match=f"model.safetensors {said}"):
            load_model(str(tiny))
    path.unlink()
    with pytest.raises(ModelError, match="has no weights"):
        load_model(str(tiny))
    (tiny / "config.json").write_text("{broken")
    with pytest.raises(ModelError, match="config.json is not valid JSON"):
        load_model(str(tiny))


def test_an_unknown_architecture_is_named(tiny: Path) -> None:
    edit_config(tiny, model_type="quantum", architectures=["QuantumForCausalLM"])
    with pytest.raises(ModelError, match="unsupported architecture"):
        load_model(str(tiny))


def test_a_models_own_code_is_not_run(tiny: Path, tmp_path: Path) -> None:
    (tiny / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    edit_config(tiny, model_type="own", auto_map={"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"})
    with pytest.raises(ModelError, match="UQCHAT_TRUST_REMOTE_CODE=1"):
        load_model(str(tiny))
    assert not (tmp_path / "ran").exists()


def test_too_large_for_the_memory_is_refused_before_loading(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "free_memory", lambda device: 1000)
    monkeypatch.setattr(models, "_load_weights", lambda *_: pytest.fail("loaded anyway"))
    with pytest.raises(ModelError, match="Not enough memory: .* needs about .* on cpu"):
        load_model(str(tiny), device="cpu")


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
def test_memory_that_runs_out_while_loading_is_explained(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def run_out(*_args: object) -> None:
        raise error

    monkeypatch.setattr(models, "_load_weights", run_out)
    with pytest.raises(ModelError, match="Not enough memory"):
        load_model(str(tiny))


def test_a_containers_limit_counts_as_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Limit 1,000 of which 700 are taken, 200 of those by files that the system gives back: 500 are free."""
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 200\n")
    monkeypatch.setattr(weights, "CGROUP", tmp_path)
    assert weights.free_memory("cpu") == 500
    (tmp_path / "memory.max").write_text("max\n")
    assert weights.free_memory("cpu") > 500


def test_sizes_are_read_from_the_headers(tiny: Path) -> None:
    loaded = load_model(str(tiny), dtype="float32")
    read = weights.read_safetensors([tiny / "model.safetensors"])
    assert read.parameters == sum(p.numel() for p in loaded.model.parameters())
    assert read.dtypes == {"F32"} and read.bytes_as(2) == read.parameters * 2


def write_gguf(path: Path, architecture: str = "llama") -> Path:
    """A GGUF file with an odd metadata mix and one tensor of 64 numbers."""
    from gguf import GGUFWriter

    writer = GGUFWriter(path, architecture)
    writer.add_array("tokenizer.ggml.tokens", ["a", "bb", "ccc"])
    writer.add_array("numbers", [1, 2, 3])
    writer.add_bool("flag", True)
    writer.add_tensor("token_embd.weight", np.zeros((8, 8), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gguf_header_gives_the_number_of_parameters(tmp_path: Path) -> None:
    assert weights.read_gguf(write_gguf(tmp_path / "a.gguf")).parameters == 64


@pytest.mark.parametrize("kept", [0, 3, 20, 60, 200, -1])
def test_a_broken_gguf_is_named(tmp_path: Path, kept: int) -> None:
    path = write_gguf(tmp_path / "a.gguf")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ModelError, match="a.gguf is (not a GGUF file|cut off)"):
        load_model(str(path))


@pytest.mark.parametrize(
    "content", [b"<html>" * 100, b"GGUF" + b"\xff" * 500, b"GGUF" + struct.pack("<IQQ", 3, 0, 0), b"GGUF" + bytes(500)]
)
def test_other_bytes_named_gguf_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="a.gguf is (not a GGUF file|cut off)"):
        load_model(str(path))


def test_a_gguf_of_an_unsupported_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="quantum"):
        load_model(str(write_gguf(tmp_path / "a.gguf", "quantum")))


def test_a_load_can_be_cancelled(tiny: Path) -> None:
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(ModelCancelledError):
        load_model(str(tiny), cancel=cancel)


def test_the_catalogue_begins_with_the_embedded_model_and_marks_gated_ones() -> None:
    choices = known_models()
    assert choices[0].name == "embedded" and len({c.name for c in choices}) == len(choices)
    assert all(c.size_gb > 0 and c.license and c.label for c in choices)
    assert all("gated" in c.note for c in choices if c.name.startswith(("meta-llama/", "google/")))


def test_a_hub_model_loads_through_its_download(tiny: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    with FakeHub() as hub:
        hub.repositories["org/tiny"] = Repository({p.name: p.read_bytes() for p in tiny.iterdir()})
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        assert load_model("org/tiny").context_window == 128


def test_a_full_disk_is_told_before_the_conversion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 9, 1))
    with pytest.raises(ModelError, match="needs 0.55 GB in .*; 0.00 GB are free"):
        load_model("embedded", cache_dir=tmp_path / "cache")
    assert list((tmp_path / "cache").glob("embedded-*/")) == []
