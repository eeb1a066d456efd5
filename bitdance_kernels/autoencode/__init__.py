"""The convolutional tokenizer: what stands between its convolutions."""
