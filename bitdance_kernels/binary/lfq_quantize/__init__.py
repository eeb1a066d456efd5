"""lfq_quantize: the quantiser of the binary tokenizer."""
