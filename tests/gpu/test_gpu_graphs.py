"""Real CUDA graphs: the same numbers as without, and the memory comes back."""

import pytest

from helpers import COURSE_ROOT

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.mark.parametrize("rules", ["0", "1"], ids=["bfloat16", "T4 rules"])
def test_graphs_train_the_same_adapters(tmp_path, monkeypatch, rules):
    monkeypatch.syspath_prepend(COURSE_ROOT / "tests")
    from helpers.machine import detect
    from helpers.training import fuse_lora, recorded
    from helpers.training.workarounds import fewer_walks
    from tests.training.test_graphs import losses, trainer_of

    monkeypatch.setenv("COURSE_T4_RULES", rules)
    torch.backends.cuda.enable_flash_sdp(rules == "0")
    torch.backends.cuda.enable_cudnn_sdp(rules == "0")
    machine = detect()
    plain, ours = trainer_of(tmp_path, machine), trainer_of(tmp_path, machine)
    for trainer in (plain, ours):
        assert fuse_lora(trainer.model) == 42
    plain.train()
    with fewer_walks(ours), recorded(ours) as shapes:
        ours.train()
        inside = torch.cuda.memory_reserved()
    assert shapes[0] == (2, 128)
    assert set(shapes) == {(2, 128), (2, 64)}
    assert torch.cuda.memory_reserved() < inside
    assert losses(ours) == pytest.approx(losses(plain), rel=2e-3)
    learned, again = (
        torch.cat([p.flatten() for name, p in trainer.model.named_parameters() if "lora_B" in name])
        for trainer in (plain, ours)
    )  # B starts at zero, so this is what was learned
    assert again.norm() > 0.01
    assert torch.nn.functional.cosine_similarity(learned, again, dim=0) > 0.98
