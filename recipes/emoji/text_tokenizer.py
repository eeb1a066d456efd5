"""The text tokenizer of the emoji model: byte-level BPE of lower-case words.

    python recipes/emoji/text_tokenizer.py runs/emoji/data/train.jsonl --out runs/emoji/text

Needs tokenizers (``pip install 'bitdance[text]'``).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.trainers import BpeTrainer

from bitdance.pipelines.prompts import save_tokenizer

SPECIAL = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"]
SPECIAL += ["<|res_4|>", "<|res_8|>", *(f"<|query_{i}|>" for i in range(1, 16))]
# What stands around every caption is half of a sequence: each a single token.
CHAT = ["user\n", "assistant\n", "\n"]


def make(texts: Iterable[str], size: int) -> Tokenizer:
    """A tokenizer of at most `size` tokens, trained on texts; it can encode any other."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=size - len(CHAT), special_tokens=SPECIAL, show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in CHAT])
    return tokenizer


def words(path: Path) -> list[str]:
    """Labels, keywords and the rest of captions, each once."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    texts = {text for line in lines for text in (line["label"], *line["tags"])}
    texts |= {line["captions"][0].removeprefix(line["label"]) for line in lines}
    return sorted(texts)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("captions", type=Path, help="train.jsonl of the data set")
    parser.add_argument("--size", type=int, default=3072, help="tokens, at most")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    options = parser.parse_args()
    tokenizer = make(words(options.captions), options.size)
    options.out.mkdir(parents=True, exist_ok=True)
    save_tokenizer(tokenizer, options.out)
    print(f"{tokenizer.get_vocab_size()} tokens: {options.out}")


if __name__ == "__main__":
    main()
