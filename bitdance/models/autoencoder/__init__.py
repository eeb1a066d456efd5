"""The binary autoencoder (the image tokenizer): encoder, quantizer, decoder, tiled decoding."""
