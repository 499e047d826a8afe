"""An encoder from every file it may be in, and FaRL's against CLIP written out."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from trainer.contract import IMAGENET_MEAN, IMAGENET_STD, RunSpec
from trainer.evaluation.stages.network import encoder_at
from trainer.method import clip
from trainer.method.mcf import Mcf, Target, build
from trainer.weights.encoders import find_encoder
from trainer.weights.files import WeightsError
from trainer.weights.published import to_published
from trainer.weights.sources import FILES_ONLY

WIDTH, DEPTH, HEADS, PATCH, SIDE = 32, 5, 2, 4, 12


@pytest.fixture
def model(tiny_run: RunSpec) -> tuple[Mcf, Target]:
    mcf = build(tiny_run)
    return mcf, Target(tiny_run, mcf)


def test_an_encoder_is_found_in_every_kind_of_file(
    tiny_run: RunSpec, model: tuple[Mcf, Target], tmp_path: Path
) -> None:
    mcf, target = model
    wanted = mcf.encoder.state_dict()
    state = tmp_path / "run/checkpoints/000000003/state.pt"
    state.parent.mkdir(parents=True)
    torch.save({"model": mcf.state_dict(), "target": target.state_dict()}, state)
    (tmp_path / "run/spec.json").write_text(tiny_run.model_dump_json())
    torch.save({"model": to_published(mcf, target)}, tmp_path / "mcf.pth")
    torch.save({"model": {**wanted, "head.weight": torch.zeros(3, 96)}}, tmp_path / "timm.pth")
    moco = {f"module.base_encoder.{name}": value for name, value in wanted.items()}
    torch.save({"state_dict": moco}, tmp_path / "moco.pth")
    found = [
        find_encoder(str(state), FILES_ONLY),
        *(find_encoder(str(tmp_path / f"{name}.pth"), FILES_ONLY, heads=3) for name in ("mcf", "timm", "moco")),
    ]
    for each in found:
        assert each.encoder == tiny_run.encoder
        assert each.digest == found[0].digest
        assert each.weights.keys() == wanted.keys()
        assert all(torch.equal(each.weights[name], wanted[name]) for name in wanted)
    torch.save({"bias": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(WeightsError, match="no cls_token, but bias"):
        find_encoder(str(tmp_path / "other.pt"), FILES_ONLY)
    with pytest.raises(WeightsError, match=r"there is no .*nothing"):
        find_encoder(str(tmp_path / "nothing"), FILES_ONLY)
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match=r"is no run's directory"):
        find_encoder(str(tmp_path / "empty"), FILES_ONLY)


class ClipBlock(nn.Module):
    """As CLIP has it: torch's own attention, and x sigmoid(1.702 x)."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(WIDTH, 4 * WIDTH), "c_proj": nn.Linear(4 * WIDTH, WIDTH)})

    def forward(self, token_BND: Tensor) -> Tensor:
        normed_BND = self.ln_1(token_BND)
        token_BND = token_BND + self.attn(normed_BND, normed_BND, normed_BND, need_weights=False)[0]
        hidden_BNM = self.mlp["c_fc"](self.ln_2(token_BND))
        return token_BND + self.mlp["c_proj"](hidden_BNM * torch.sigmoid(1.702 * hidden_BNM))


class ClipVisual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTH, PATCH, PATCH, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(WIDTH))
        self.positional_embedding = nn.Parameter(torch.randn((SIDE // PATCH) ** 2 + 1, WIDTH))
        self.ln_pre, self.ln_post = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.transformer = nn.ModuleDict({"resblocks": nn.ModuleList(ClipBlock() for _ in range(DEPTH))})

    def outputs(self, image_BCHW: Tensor) -> list[Tensor]:
        mean, std = (torch.tensor(three).view(3, 1, 1) for three in (clip.MEAN, clip.STD))
        token_BLD = self.conv1((image_BCHW - mean) / std).flatten(2).transpose(1, 2)
        cls_B1D = self.class_embedding.expand(len(image_BCHW), 1, -1)
        token_BND = self.ln_pre(torch.cat([cls_B1D, token_BLD], dim=1) + self.positional_embedding)
        return [token_BND := block(token_BND) for block in self.transformer["resblocks"]]


@torch.no_grad()
def test_farl_s_encoder_computes_what_clip_s_does_on_our_input(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = ClipVisual()
    for parameter in theirs.parameters():
        parameter.add_(0.2 * torch.randn(parameter.shape))  # no norm is at its initial values
    state = {f"visual.{name}": value for name, value in theirs.state_dict().items()}
    torch.save({"state_dict": {**state, "text_projection": torch.zeros(2)}}, tmp_path / "farl.pth")
    found = find_encoder(str(tmp_path / "farl.pth"), FILES_ONLY, heads=HEADS)
    ours = encoder_at(found.encoder, found.weights, SIDE)
    image_BCHW = torch.rand(2, 3, SIDE, SIDE)
    mean, std = (torch.tensor(three).view(3, 1, 1) for three in (IMAGENET_MEAN, IMAGENET_STD))
    outputs = ours.block_outputs((image_BCHW - mean) / std, range(DEPTH))
    torch.testing.assert_close(outputs, theirs.outputs(image_BCHW), atol=1e-5, rtol=1e-4)
