"""The list of head types, and a head from its type and settings. Knows no language model and no file."""

from __future__ import annotations

from collections.abc import Mapping

from uqchat.errors import InputError
from uqchat.heads.base import ClaimHead, Option, TokenHead
from uqchat.heads.claim_heads import Claim, ClaimFirstToken, ClaimLight, LinearClaim, MlpClaim
from uqchat.heads.token_heads import Compact, Linear, Luh, Saplma

HEADS: dict[str, type[TokenHead] | type[ClaimHead]] = {
    "luh": Luh,
    "linear": Linear,
    "saplma": Saplma,
    "claim": Claim,
    "claim_light": ClaimLight,
    "claim_first_token": ClaimFirstToken,
    "linear_claim": LinearClaim,
    "mlp_claim": MlpClaim,
    "compact": Compact,
}


def make_head(
    head_type: str, num_features: int, options: Mapping[str, object], has_input_norm: bool = False
) -> TokenHead | ClaimHead:
    """A new head with random weights, in eval mode.

    Args:
        head_type: one of `HEADS`. num_features: F. options: settings; those left out have their defaults.
        has_input_norm: the variant of claim heads that normalises its features first.

    Raises:
        InputError: an unknown type or setting, or a value outside its range; the text lists what is allowed.
    """
    given = check_options(head_type, options)
    extra = {"has_input_norm": True} if has_input_norm and issubclass(HEADS[head_type], Claim) else {}
    return HEADS[head_type](num_features, **given, **extra).eval()


def check_options(head_type: str, given: Mapping[str, object]) -> dict[str, object]:
    """The settings of a head of this type, checked.

    Raises:
        InputError: an unknown type or setting, or a value outside its range; the text lists what is allowed.
    """
    if head_type not in HEADS:
        raise InputError(f"Unknown head type {str(head_type)[:80]!r}. Known: {', '.join(HEADS)}.")
    known = HEADS[head_type].options
    unknown = sorted(str(name)[:80] for name in given if name not in known)
    if unknown:
        names = ", ".join(known) or "none"
        raise InputError(f"A head of type {head_type} has no setting {unknown[0]!r}. Known: {names}.")
    for name, value in given.items():
        _check_value(name, value, known[name])
    return dict(given)


def _check_value(name: str, value: object, option: Option) -> None:
    kind = type(option.default)
    if isinstance(value, bool) is not (kind is bool) or not isinstance(value, (int, float) if kind is float else kind):
        raise InputError(f"`{name}` of the head must be of type {kind.__name__}; got {str(value)[:80]!r}.")
    if kind is not bool and not option.low <= value <= option.high:
        raise InputError(f"`{name}` of the head must lie between {option.low:g} and {option.high:g}; got {value}.")
