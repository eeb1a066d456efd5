"""Next-patch attention: block-causal training and prefill, decoding against a cache, rotation.

A sequence is a causal prefix followed by patches of P tokens; within a patch every token sees every
other, across patches attention is causal. So what a query sees is one interval of keys, and both
ends of the interval never decrease along the sequence: two int32 vectors (``Ranges``) take the
place of a T x T mask, for packed documents as well.

While decoding, the P new tokens see the whole cache and each other, so no mask is left but the
length of each row's cache. Step by step: ``rope_append`` rotates the new queries and keys and
writes keys and values behind the cached ones, then ``block_decode_attention`` reads the cache. The
position at which a row is written and the length that is read are device tensors: a captured CUDA
graph serves every step.

Tensors are [B, T, H, D]. With Hkv < H key-value heads, query head h reads key-value head
h // (H / Hkv).
"""
