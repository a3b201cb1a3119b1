"""Where the local scorer works, and where the translator learns."""

from __future__ import annotations

import pytest
import torch

from scalr_prod.errors import SettingsError
from scalr_prod.translator import devices


@pytest.mark.parametrize(
    ("seen", "wanted", "found"),
    [(False, "auto", "cpu"), (False, "cpu", "cpu"), (True, "auto", "cuda"), (True, "cpu", "cpu"), (True, "cuda", "cuda")],
)
def test_the_device_is_the_one_that_is_there(monkeypatch, seen, wanted, found):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: seen)
    assert devices.resolve_device(wanted) == found


def test_a_gpu_that_is_not_there_is_asked_for_in_vain(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SettingsError) as caught:
        devices.resolve_device("cuda")
    assert caught.value.where == "[compute] device = cuda"
    assert 'device = "auto"' in caught.value.next_step
