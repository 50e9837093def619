"""Modules of heads: names and sizes of the published checkpoints, and what each of them computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional

from uqchat.errors import InputError
from uqchat.features import make_features
from uqchat.features_base import ModelShape
from uqchat.heads.encoder import RowEncoder, run_encoder
from uqchat.heads.modules import HEADS, make_head

SEVEN_B = ModelShape(num_layers=32, num_heads=32, hidden_size=4096, vocab_size=32_000)  # Mistral-7B, Llama-3.1-8B
SMALL = {"head_dim": 8, "n_layers": 2, "n_heads": 2}


def published(lags: int, top_n: int) -> list[dict[str, Any]]:
    attention = {"name": "basic_attention", "layer_nums": "all", "attn_history_sz": lags, "pool": False}
    return [attention, {"name": "token_probabilities", "top_n": top_n}]


@pytest.mark.parametrize(
    ("lags", "layers", "parameters", "file_bytes"),
    [(2, 1, 10_446_849, 41_796_421), (5, 2, 20_679_425, 82_731_233)],
    ids=["uhead_claim_att_exp3_Mistral-7B-Instruct-v0.2", "uhead_claim_Llama-3.1-8B-Instruct"],
)
def test_published_heads_have_their_parameter_count(lags: int, layers: int, parameters: int, file_bytes: int) -> None:
    """Four bytes each, the published file is larger by the container's few kilobytes only."""
    width = make_features(published(lags, 4), SEVEN_B).width
    with torch.device("meta"):
        head = make_head("claim", width, {"head_dim": 768, "n_layers": layers, "n_heads": 8})
    count = sum(p.numel() for p in head.parameters())
    assert count == parameters and 0 < file_bytes - 4 * count < 20_000


def layer_shapes(i: int, d: int) -> dict[str, tuple[int, ...]]:
    start = f"transformer_encoder.layers.{i}."
    shapes = {
        "self_attn.in_proj_weight": (3 * d, d),
        "self_attn.in_proj_bias": (3 * d,),
        "self_attn.out_proj.weight": (d, d),
        "self_attn.out_proj.bias": (d,),
        "linear1.weight": (2048, d),
        "linear1.bias": (2048,),
        "linear2.weight": (d, 2048),
        "linear2.bias": (d,),
    }
    norms = {f"{norm}.{part}": (d,) for norm in ("norm1", "norm2") for part in ("weight", "bias")}
    return {start + name: shape for name, shape in (shapes | norms).items()}


def linear(name: str, out: int, inner: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, inner), f"{name}.bias": (out,)}


def norm(name: str, size: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (size,), f"{name}.bias": (size,)}


F, D = 20, 8
PROJ = linear("proj.0", 2 * D, F) | norm("proj.1", 2 * D) | linear("proj.4", D, 2 * D) | norm("proj.5", D)
ENCODER = layer_shapes(0, D) | layer_shapes(1, D)
JUDGE = linear("classifier.0", D, D) | norm("classifier.1", D) | linear("classifier.4", 1, D)
MLP = (
    linear("layers.0", 256, F) | linear("layers.2", 128, 256) | linear("layers.4", 64, 128) | linear("layers.6", 1, 64)
)
CLAIM = PROJ | {"entity_embedding.weight": (2, D)} | ENCODER | JUDGE
INTERIM = linear("classifier.0", 4, D) | norm("classifier.1", 4) | linear("classifier.4", 1, 4)
WHOLE = {"enable_feature_projection_layer": False, "n_layers": 2, "n_heads": 2}


@pytest.mark.parametrize(
    ("head_type", "options", "expected"),
    [
        ("claim", SMALL, CLAIM),
        ("claim", {**SMALL, "mask_future_tokens": True}, CLAIM),
        ("claim_first_token", SMALL, CLAIM),
        ("luh", SMALL, PROJ | ENCODER | linear("classifier", 1, D)),
        ("luh", {**SMALL, "interim_dim": 4}, PROJ | ENCODER | INTERIM),
        ("luh", {**SMALL, "use_transformer_encoder": False}, PROJ | linear("classifier", 1, D)),
        ("luh", WHOLE, layer_shapes(0, F) | layer_shapes(1, F) | linear("classifier", 1, F)),
        (
            "claim_light",
            SMALL,
            linear("proj.0", D, F)
            | norm("proj.1", D)
            | {
                "entity_embedding.weight": (2, D),
                "cls_token_embedding": (1, 1, D),
                "position_embeddings.weight": (512, D),
            }
            | ENCODER
            | JUDGE,
        ),
        ("saplma", {}, MLP),
        ("mlp_claim", {}, MLP),
        ("linear", {}, linear("classifier", 1, F)),
        ("linear_claim", {}, linear("classifier", 1, F)),
    ],
)
def test_names_and_shapes_are_those_of_published_checkpoints(
    head_type: str, options: dict[str, Any], expected: dict[str, tuple[int, ...]]
) -> None:
    state = make_head(head_type, F, options).state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == expected


def test_the_variant_with_a_normalised_input_has_one_more_layer_in_front() -> None:
    head = make_head("claim", F, SMALL, has_input_norm=True)
    state = head.state_dict()
    assert state["proj.0.weight"].shape == (F,) and state["proj.1.weight"].shape == (2 * D, F)
    assert state["proj.6.weight"].shape == (D,)
    broken = torch.tensor([[float("nan"), float("inf")] + [0.0] * (F - 2)])
    assert torch.isfinite(head.embed(broken)).all()


@pytest.fixture
def rows() -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(3, 7, F)


IS_REAL = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1, 0]]).bool()
CLAIMS = [torch.tensor([[0, 0, 1, 1, 0, 0, 0], [0, 1, 0, 0, 0, 1, 1]]), torch.zeros(0, 7), torch.eye(7)[[3]]]


def head_of(head_type: str, **more: Any) -> Any:
    torch.manual_seed(0)
    with_encoder = head_type in ("luh", "claim", "claim_light", "claim_first_token")
    return make_head(head_type, F, {**(SMALL if with_encoder else {}), **more})


@pytest.mark.parametrize("head_type", HEADS)
def test_padding_and_company_change_no_logit_and_a_text_without_claims_takes_nobodys(
    head_type: str, rows: torch.Tensor
) -> None:
    head = head_of(head_type)
    lengths = IS_REAL.sum(dim=1).tolist()
    with torch.no_grad():
        if head.level == "token":
            together = head(rows, IS_REAL)
            for i, n in enumerate(lengths):
                torch.testing.assert_close(together[i, :n], head(rows[i : i + 1, :n])[0], atol=1e-5, rtol=1e-4)
            return
        together = head(rows, CLAIMS, IS_REAL)
        assert [len(found) for found in together] == [2, 0, 1]
        for i, n in enumerate(lengths):
            alone = head(rows[i : i + 1, :n], [CLAIMS[i][:, :n]])[0]
            torch.testing.assert_close(together[i], alone, atol=1e-5, rtol=1e-4)


def test_linear_and_mlp_heads_equal_the_formula(rows: torch.Tensor) -> None:
    mask = CLAIMS[0].float()
    means = (mask @ rows[0]) / mask.sum(dim=1, keepdim=True)
    plain, of_claim = head_of("linear"), head_of("linear_claim")
    w, b = plain.classifier.weight[0], plain.classifier.bias
    torch.testing.assert_close(plain(rows), rows @ w + b)
    torch.testing.assert_close(
        of_claim(rows[:1], CLAIMS[:1])[0], means @ of_claim.classifier.weight[0] + of_claim.classifier.bias
    )
    mlp = head_of("mlp_claim")
    hidden = rows[0]
    for i in (0, 2, 4):
        hidden = functional.relu(hidden @ mlp.layers[i].weight.T + mlp.layers[i].bias)
    expected = (mask @ hidden) / mask.sum(dim=1, keepdim=True) @ mlp.layers[6].weight[0] + mlp.layers[6].bias
    torch.testing.assert_close(mlp(rows[:1], CLAIMS[:1])[0], expected)
    saplma = head_of("saplma")
    saplma.load_state_dict(mlp.state_dict())
    torch.testing.assert_close(saplma(rows)[0], hidden @ mlp.layers[6].weight[0] + mlp.layers[6].bias)


def test_a_head_that_knows_only_the_first_token_equals_a_claim_of_that_token(rows: torch.Tensor) -> None:
    first, whole = head_of("claim_first_token"), head_of("claim")
    cut = torch.tensor([[0, 0, 1, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0, 0]])
    torch.testing.assert_close(first(rows[:1], CLAIMS[:1])[0], whole(rows[:1], [cut])[0])


def test_the_light_head_reads_positions_up_to_511() -> None:
    head = head_of("claim_light")
    torch.manual_seed(2)
    long = torch.randn(1, 600, F)
    claim = torch.zeros(1, 600)
    claim[0, 5:9] = 1
    cut = head(long[:, :511], [claim[:, :511]])[0]
    torch.testing.assert_close(head(long, [claim])[0], cut)
    assert not torch.allclose(head(long.flip(1)[:, -511:], [claim[:, :511]])[0], cut)


@pytest.mark.parametrize("head_type", ["luh", "claim"])
def test_a_causal_head_does_not_look_ahead_and_a_published_one_does(head_type: str, rows: torch.Tensor) -> None:
    changed = rows[:1].clone()
    changed[:, 5:] += 3

    def logits(head: Any, features: torch.Tensor) -> torch.Tensor:
        return head(features)[0, :5] if head.level == "token" else head(features, [torch.eye(7)[:5]])[0]

    causal, plain = head_of(head_type, is_causal=True), head_of(head_type)
    torch.testing.assert_close(logits(causal, changed), logits(causal, rows[:1]))
    assert not torch.allclose(logits(plain, changed), logits(plain, rows[:1]))


@pytest.mark.parametrize("steps", [(9,), (1,) * 9, (4, 1, 1, 3), (1, 8)])
@torch.inference_mode()
def test_rows_pushed_one_by_one_equal_the_whole_causal_pass(steps: tuple[int, ...]) -> None:
    torch.manual_seed(3)
    encoder = head_of("luh", n_heads=4).transformer_encoder
    rows = torch.randn(9, D)
    pushed = RowEncoder(encoder, is_causal=True)
    parts = [pushed.push(part) for part in rows.split(steps)]
    torch.testing.assert_close(torch.cat(parts), run_encoder(encoder, rows[None], None, True)[0], atol=1e-5, rtol=1e-4)


@torch.inference_mode()
def test_many_rows_pushed_one_by_one_equal_the_whole_causal_pass() -> None:
    """More than the places kept at first, so that they grow."""
    torch.manual_seed(3)
    encoder = head_of("luh").transformer_encoder
    rows = torch.randn(300, D)
    pushed = RowEncoder(encoder, is_causal=True)
    parts = [pushed.push(row[None]) for row in rows]
    torch.testing.assert_close(torch.cat(parts), run_encoder(encoder, rows[None], None, True)[0], atol=1e-5, rtol=1e-4)
    assert pushed.length == 300


@torch.inference_mode()
def test_all_rows_at_once_equal_the_whole_pass_that_looks_both_ways() -> None:
    torch.manual_seed(3)
    encoder = head_of("luh").transformer_encoder
    rows = torch.randn(9, D)
    expected = run_encoder(encoder, rows[None], None, False)[0]
    torch.testing.assert_close(RowEncoder(encoder, is_causal=False).push(rows), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("head_type", "options", "message"),
    [
        ("magic", {}, "Unknown head type 'magic'. Known: luh, linear"),
        ("linear", {"head_dim": 8}, "no setting 'head_dim'. Known: none"),
        ("luh", {"head_dim": 0}, "between 1 and"),
        ("luh", {"head_dim": "8"}, "of type int"),
        ("luh", {"n_layers": 10**9}, "between 1 and 64"),
        ("luh", {"head_dim": 10, "n_heads": 3}, "cannot be split among 3"),
        ("luh", {"dropout": 1.5}, "between 0 and 1"),
        ("luh", {"use_transformer_encoder": 1}, "of type bool"),
    ],
)
def test_impossible_settings_are_refused_with_the_reason(head_type: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_head(head_type, F, options)
