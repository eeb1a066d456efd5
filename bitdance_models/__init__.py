"""Small trained models for bitdance.

``fashion/``
    Class-conditional BitDance for the ten classes of Fashion-MNIST at 32 x 32 pixels, 20 AR steps
    of 4 tokens, with its autoencoder, in float16. Trained by the commands in the README;
    ``recipes/fashion`` has the configurations, logs and an evaluation.

``emoji/``
    Text-to-image BitDance for color emoji in two styles at 64 x 64 pixels, 4 AR steps of 4 tokens,
    with its autoencoder and its text tokenizer, in float16. ``recipes/emoji`` has the
    configurations, logs and an evaluation; ``NOTICE`` names the pictures it was trained on.

``from_pretrained`` finds them here by their names; ``bitdance generate`` uses them by default.
"""
