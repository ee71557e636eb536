"""Small encoder models with random weights: a translator with attention and a bidirectional classifier."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from elman_bundle import BEGIN, END, Bundle, CharacterVocabulary, SymbolVocabulary
from elman_bundle.vocabulary import UNKNOWN
from elman_export import Labels, NextToken, Source, Token, Values, export_bundle
from elman_export.contract import Tensors
from elman_training.cells.gru import GRU
from tests.support.shared import shared_bundle

LETTERS = CharacterVocabulary([UNKNOWN, *"abcdefghijklmnopqrstuvwxyz "], unknown_id=0)
SOUNDS = SymbolVocabulary([UNKNOWN, BEGIN, END, *(f"S{index}" for index in range(20))], unknown_id=0)
LONGEST = 64


class BothWays(nn.Module):
    """A bidirectional GRU: source [B, S] and lengths to [B, S, 2H], zeros after the ends, and the mask [B, S]."""

    def __init__(self, tokens: int, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, 16)
        self.forwards, self.backwards = nn.GRU(16, hidden, batch_first=True), nn.GRU(16, hidden, batch_first=True)

    def forward(self, source: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        features = self.embedding(source)
        positions = torch.arange(source.shape[1])
        mirrored = (lengths[:, None] - 1 - positions).clamp(min=0)[..., None]
        onward, _ = self.forwards(features)
        back, _ = self.backwards(torch.gather(features, 1, mirrored.expand(-1, -1, features.shape[2])))
        back = torch.gather(back, 1, mirrored.expand(-1, -1, back.shape[2]))
        mask = (positions < lengths[:, None]).float()
        return torch.cat([onward, back], dim=2) * mask[..., None], mask


class Translator(nn.Module):
    """Additive attention (Bahdanau et al. 2015) over a bidirectional encoder, which gives the initial state."""

    def __init__(self, hidden: int = 24) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.hidden = hidden
        self.reader = BothWays(LETTERS.size, hidden)
        self.keys = nn.Linear(2 * hidden, hidden)
        self.start = nn.Linear(2 * hidden, hidden)
        self.embedding = nn.Embedding(SOUNDS.size, 16)
        self.cell = GRU(16, hidden)
        self.query, self.score = nn.Linear(hidden, hidden, bias=False), nn.Linear(hidden, 1, bias=False)
        self.head = nn.Linear(3 * hidden, SOUNDS.size)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.mul_(2.5)  # so that the output depends on the source

    def initial_state(self, rows: int) -> Tensors:
        return {"hidden": torch.zeros(rows, self.hidden)}

    def encode(self, source: Tensor, lengths: Tensor) -> tuple[Tensors, Tensors]:
        memory, mask = self.reader(source, lengths)
        start = torch.tanh(self.start(memory[:, 0]))
        return {"memory": memory, "keys": self.keys(memory) * mask[..., None], "mask": mask}, {"hidden": start}

    def step(self, inputs: Tensors, constants: Tensors, state: Tensors) -> tuple[Tensors, Tensors]:
        output, after = self.cell.step(self.embedding(inputs["token"]), state)
        mask = constants["mask"]
        scores = self.score(torch.tanh(constants["keys"] + self.query(output)[:, None]))[..., 0] - 1e9 * (1 - mask)
        weights = (torch.exp(scores - scores.max(dim=1, keepdim=True).values) * mask)[:, None]
        context = (weights @ constants["memory"])[:, 0] / (weights @ mask[..., None])[:, 0]
        return {"logits": self.head(torch.cat([output, context], dim=1))}, after


class Judge(nn.Module):
    """A bidirectional classifier of whole texts: the encoder computes the scores, and the step outputs them."""

    def __init__(self, hidden: int = 12) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.reader = BothWays(LETTERS.size, hidden)
        self.head = nn.Linear(2 * hidden, 3)

    def initial_state(self, rows: int) -> Tensors:
        return {}

    def encode(self, source: Tensor, lengths: Tensor) -> tuple[Tensors, Tensors]:
        memory, mask = self.reader(source, lengths)
        return {"features": (memory - 2 * (1 - mask[..., None])).max(dim=1).values}, {}

    def step(self, inputs: Tensors, constants: Tensors, state: Tensors) -> tuple[Tensors, Tensors]:
        return {"logits": self.head(constants["features"])}, {}


class Speller(nn.Module):
    """The least that has the interface of a `Translator`, whose recurrences take torch many seconds to export."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.embedding, self.head = nn.Embedding(LETTERS.size, 48), nn.Linear(48, SOUNDS.size)

    def initial_state(self, rows: int) -> Tensors:
        return {"hidden": torch.zeros(rows, 24)}

    def encode(self, source: Tensor, lengths: Tensor) -> tuple[Tensors, Tensors]:
        mask = (torch.arange(source.shape[1]) < lengths[:, None]).float()
        memory = self.embedding(source) * mask[..., None]
        return {"memory": memory, "keys": memory[..., :24], "mask": mask}, {"hidden": memory[:, 0, :24]}

    def step(self, inputs: Tensors, constants: Tensors, state: Tensors) -> tuple[Tensors, Tensors]:
        mask = constants["mask"]
        scores = torch.tanh(constants["keys"] @ state["hidden"][..., None])[..., 0]
        weights = (torch.exp(scores) * mask)[:, None]
        context = (weights @ constants["memory"])[:, 0] / (weights @ mask[..., None])[:, 0]
        return {"logits": self.head(context)}, {"hidden": torch.tanh(state["hidden"] + inputs["token"][:, None])}


def translator_bundle() -> Bundle:
    """Return a bundle of `Translator`, which maps letters to sounds."""
    return shared_bundle("translator", lambda folder: export_translator(Translator(), folder))


def judge_bundle() -> Bundle:
    """Return a bundle of `Judge`, which maps letters to one of three classes."""
    return shared_bundle("judge", export_judge)


def export_translator(module: nn.Module, folder: Path, **options: object) -> None:
    """Export a module as a `Translator`, with `options` in place of the usual ones."""
    expected: dict[str, object] = {
        "name": "translator",
        "inputs": {"token": Token(SOUNDS, begin_id=1, end_id=2)},
        "outputs": {"logits": NextToken()},
        "constants": {
            "memory": Values((48,), variable_length=True),
            "keys": Values((24,), variable_length=True),
            "mask": Values((), variable_length=True),
        },
        "source": Source(Token(LETTERS), LONGEST),
    }
    export_bundle(module, folder, **{**expected, **options})  # type: ignore[arg-type]


def export_judge(folder: Path) -> None:
    """Export a `Judge`."""
    export_bundle(
        Judge(),
        folder,
        name="judge",
        inputs={},
        outputs={"logits": Labels(["bad", "fair", "good"])},
        constants={"features": Values((24,))},
        source=Source(Token(LETTERS), LONGEST),
    )
