"""A reader of paragraphs: bidirectional attention flow (Seo et al. 2017), trained from scratch.

    x = highway([word embedding; maximum of a convolution over the word's bytes])       question and paragraph
    u, h = encoder(x)                                    one bidirectional LSTM for both, 2d neurons
    s_tj = w . [h_t; u_j; h_t * u_j]                     how much word t of the paragraph is about word j
    a_t  = sum_j softmax_j(s_tj) u_j                     what the question says about word t
    b    = sum_t softmax_t(max_j s_tj) h_t               what of the paragraph the question is about
    g    = [h; a; h * a; h * b]
    m    = modeling(g), two bidirectional LSTMs          m2 = output(m), one more
    start = w_1 . [g; m]          end = w_2 . [g; m2]

Each direction is an LSTM of its own. The backward one reads every sequence turned around by its own length, so that
padding lies behind the words in both directions: what is computed for a paragraph does not depend on the others in
its batch. Word 0 is padding; the lengths are read off it.

Source: Seo et al. 2017, arXiv 1611.01603, section 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

CHARACTERS = 257  # padding, and the values of a byte
CHARACTER_WIDTH = 8  # columns of the table of bytes, and steps of the convolution: as Seo et al.
CHARACTER_STEPS = 5
MASKED = -1e9  # how similar padding is to anything: its exponential is 0 beside any other
LAYERS = 4  # of recurrence: encoder, two modeling layers, output


@dataclass(frozen=True, slots=True, kw_only=True)
class ReaderConfig:
    """Everything that fixes the shapes of a `Reader`.

    Attributes:
        vocabulary_size: number of words, padding included.
        embedding_size: columns of the word table.
        character_channels: of the convolution over a word's bytes.
        hidden_sizes: neurons per direction of encoder, first and second modeling layer, and output layer.
        dropout: probability of dropping a value that a recurrent layer reads or writes, in [0, 1).
    """

    vocabulary_size: int
    embedding_size: int
    character_channels: int
    hidden_sizes: tuple[int, ...]
    dropout: float = 0.0


class Lengths(NamedTuple):
    """What is known of a padded batch."""

    is_word: Tensor  # [T, B]
    turned: Tensor  # [T, B], which of the T*B words stands there when every sequence is turned around


class Bidirectional(nn.Module):
    """Two LSTMs, one of which reads every sequence from its own end."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.ahead = nn.LSTM(input_size, hidden_size)
        self.back = nn.LSTM(input_size, hidden_size)

    def forward(self, x: Tensor, lengths: Lengths) -> Tensor:
        """Return both directions' neurons side by side; `x` is `[T, B, input_size]`."""
        ahead, _ = self.ahead(x)  # [T, B, hidden_size]
        back, _ = self.back(_turn(x, lengths))
        return torch.cat([ahead, _turn(back, lengths)], dim=-1)


class Words(nn.Module):
    """What a word looks like: its embedding and its bytes, through two highway layers."""

    def __init__(self, config: ReaderConfig) -> None:
        super().__init__()
        width = config.embedding_size + config.character_channels
        self.embedding = nn.Embedding(config.vocabulary_size, config.embedding_size, padding_idx=0)
        self.characters = nn.Embedding(CHARACTERS, CHARACTER_WIDTH, padding_idx=0)
        self.convolution = nn.Conv2d(CHARACTER_WIDTH, config.character_channels, (1, CHARACTER_STEPS))
        self.candidates = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.transforms = nn.ModuleList(nn.Linear(width, width) for _ in range(2))

    def forward(self, words: Tensor, characters: Tensor) -> Tensor:
        """Return `[T, B, width]` from words `[T, B]` and their bytes `[T, B, WORD_BYTES]`."""
        spelling = self.characters(characters).permute(0, 3, 1, 2)  # [T, 8, B, WORD_BYTES]
        channels = torch.relu(self.convolution(spelling)).amax(dim=3)  # [T, character_channels, B]
        x = torch.cat([self.embedding(words), channels.transpose(1, 2)], dim=-1)
        for candidate, transform in zip(self.candidates, self.transforms, strict=True):
            t = torch.sigmoid(transform(x))
            x = t * torch.relu(candidate(x)) + (1 - t) * x
        return x


class Reader(nn.Module):
    """Says where in a paragraph the answer to a question begins and ends."""

    def __init__(self, config: ReaderConfig) -> None:
        super().__init__()
        encoder, first, second, output = config.hidden_sizes  # per direction
        h, g = 2 * encoder, 8 * encoder
        self.words = Words(config)
        self.encoder = Bidirectional(config.embedding_size + config.character_channels, encoder)
        self.similarity = nn.ParameterList(nn.Parameter(torch.empty(h)) for _ in range(3))  # of h, u and h * u
        self.modeling = nn.ModuleList([Bidirectional(g, first), Bidirectional(2 * first, second)])
        self.output = Bidirectional(2 * second, output)
        self.start = nn.Linear(g + 2 * second, 1)
        self.end = nn.Linear(g + 2 * output, 1)
        self.dropout = nn.Dropout(config.dropout)
        for vector in self.similarity:
            nn.init.uniform_(vector, -(h**-0.5), h**-0.5)  # as nn.Linear starts

    def forward(
        self, paragraph: Tensor, paragraph_characters: Tensor, question: Tensor, question_characters: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Read paragraphs and questions, a pair per column.

        Args:
            paragraph: words, int64, shape `[T, B]`, 0 behind the last one.
            paragraph_characters: their bytes plus one, int64, shape `[T, B, WORD_BYTES]`.
            question: words, shape `[J, B]`.
            question_characters: shape `[J, B, WORD_BYTES]`.

        Returns:
            Logits of the answer's first and last word, each `[T, B]`; those of padding mean nothing.
        """
        of_paragraph, of_question = lengths_of(paragraph), lengths_of(question)
        h = self._encode(paragraph, paragraph_characters, of_paragraph)  # [T, B, 2d]
        u = self._encode(question, question_characters, of_question)  # [J, B, 2d]
        g = self.dropout(self._attend(h, u, of_paragraph.is_word, of_question.is_word))  # [T, B, 8d]
        m = g
        for layer in self.modeling:
            m = self.dropout(layer(m, of_paragraph))  # [T, B, 2d]
        m2 = self.dropout(self.output(m, of_paragraph))
        start = self.start(torch.cat([g, m], dim=-1)).squeeze(-1)  # [T, B]
        end = self.end(torch.cat([g, m2], dim=-1)).squeeze(-1)
        return start, end

    def neuron_sources(self) -> dict[str, tuple[str, ...]]:
        """Say whose neurons each LSTM reads, so that gates are priced for all that goes with a neuron.

        The encoder's inputs stay: the second highway layer, which passes them on, reads them all.
        """
        sources: dict[str, tuple[str, ...]] = {"encoder.ahead": (), "encoder.back": ()}
        below: tuple[str, ...] = ("encoder",) * 4  # h, a, h * a, h * b
        for layer in ("modeling.0", "modeling.1", "output"):
            inputs = tuple(f"{each}.{direction}" for each in below for direction in ("ahead", "back"))
            sources |= {f"{layer}.ahead": inputs, f"{layer}.back": inputs}
            below = (layer,)
        return sources

    def _encode(self, words: Tensor, characters: Tensor, lengths: Lengths) -> Tensor:
        encoded: Tensor = self.encoder(self.dropout(self.words(words, characters)), lengths)
        return encoded

    def _attend(self, h: Tensor, u: Tensor, in_paragraph: Tensor, in_question: Tensor) -> Tensor:
        of_h, of_u, of_both = self.similarity
        h, u = h.transpose(0, 1), u.transpose(0, 1)  # [B, T, 2d], [B, J, 2d]
        s = (h * of_both) @ u.transpose(1, 2) + (h @ of_h)[:, :, None] + (u @ of_u)[:, None]  # [B, T, J]
        s = s.masked_fill(~in_question.T[:, None], MASKED)
        a = s.softmax(dim=2) @ u  # [B, T, 2d]
        about = s.amax(dim=2).masked_fill(~in_paragraph.T, MASKED).softmax(dim=1)  # [B, T]
        b = about[:, None] @ h  # [B, 1, 2d]
        return torch.cat([h, a, h * a, h * b], dim=-1).transpose(0, 1)


def lengths_of(words: Tensor) -> Lengths:
    """Return which of a padded batch's words are words, and where each is in its turned sequence."""
    is_word = words != 0  # [T, B]
    place = torch.arange(words.shape[0], device=words.device)[:, None]
    last = is_word.sum(dim=0)[None] - 1
    step = torch.where(place <= last, last - place, place)  # [T, B]; padding stays where it is
    column = torch.arange(words.shape[1], device=words.device)[None]
    return Lengths(is_word=is_word, turned=step * words.shape[1] + column)


def _turn(x: Tensor, lengths: Lengths) -> Tensor:
    """Turn every sequence around by its own length; `x` is `[T, B, width]`."""
    return x.flatten(0, 1)[lengths.turned]
