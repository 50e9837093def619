"""Records made from a cache hold what the model and the calibrations would say of the same answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.trainers.tiny_cache import make_model, make_tiny_cache
from trainers.records import records_of
from trainers.replay import Opened, replay
from uqchat.calibration import Calibrations, fit_calibration
from uqchat.scope import Scope


def test_a_record_holds_the_calibrated_risk_its_scope_and_the_tokens(tmp_path: Path) -> None:
    model = make_model()
    cache, opened = make_tiny_cache(tmp_path / "tiny", model, count=24), Opened(model.info)
    estimator = opened.uncalibrated("entropy")
    scored = list(replay(cache, [estimator]))
    raw = [one.risks["entropy"].raw for one in scored]
    wrong = np.arange(len(raw)) % 2
    scope = Scope("made", weights_fingerprint=opened.shelf.fingerprint)
    fitted = Calibrations(None, fit_calibration(raw, wrong, "platt", level="answer", scope=scope))
    found = list(records_of(cache, [estimator], [fitted], (), "tiny"))
    assert [record.question_id for record in found] == [one.answer.id for one in scored]
    for record, one in zip(found, scored, strict=True):
        risk = record.risks["entropy"]
        assert (risk.value, risk.raw) == pytest.approx((fitted.answer.apply(one.risks["entropy"].raw), risk.raw))
        assert risk.calibration == (None if record.outside_scope else "made")
        assert record.tokens == one.tokens and record.answer == one.answer.text
        assert (record.model, record.is_error, record.style) == ("tiny", one.answer.is_error, one.answer.style)


def test_an_estimator_can_be_called_otherwise_or_by_its_riskiest_token(tmp_path: Path) -> None:
    model = make_model()
    cache, opened = make_tiny_cache(tmp_path / "tiny", model, count=24), Opened(model.info)
    estimators = [opened.uncalibrated(name) for name in ("entropy", "entropy:max", "doubt=entropy:max")]
    assert [one.name for one in estimators] == ["entropy", "entropy:max", "doubt"]
    for scored in replay(cache, estimators):
        own = [token.risks["entropy"].raw for token in scored.tokens if not token.is_end]
        assert scored.risks["entropy:max"].raw == scored.risks["doubt"].raw == max(own)
        assert scored.risks["entropy"].raw == pytest.approx(np.mean(own))
