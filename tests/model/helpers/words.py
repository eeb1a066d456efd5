"""A tokenizer of letters with the special tokens of a text-to-image model."""

import json
import re

SPECIAL = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"]
SPECIAL += [f"<|res_{n}|>" for n in (2, 4, 6)] + [f"<|query_{i}|>" for i in (1, 2, 3)]
PATTERN = re.compile(f"({'|'.join(map(re.escape, SPECIAL))})")
LETTERS = 100
VOCABULARY = LETTERS + len(SPECIAL)


class Letters:
    """Ids of letters, modulo their number, and of special tokens."""

    def encode(self, text):
        ids = []
        for part in PATTERN.split(text):
            special = part in SPECIAL
            ids += [self.token_to_id(part)] if special else [ord(c) % LETTERS for c in part]
        return ids

    def token_to_id(self, token):
        return LETTERS + SPECIAL.index(token) if token in SPECIAL else None

    def save_pretrained(self, folder):
        (folder / "letters.json").write_text(json.dumps(SPECIAL))


class SizedWords:
    """Spells texts with 30 ids, and knows images of up to 6 x 6 tokens, of 46 ids in all."""

    def encode(self, text):
        return [ord(letter) % 30 for letter in text]

    def convert_tokens_to_ids(self, token):
        size = re.fullmatch(r"<\|res_([1-6])\|>", token)
        if size:
            return 35 + int(size[1])
        return {"<|vision_start|>": 30, **{f"<|query_{i}|>": 30 + i for i in (1, 2, 3)}}.get(token)
