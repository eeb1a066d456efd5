"""Small trained models for bitdance.

``fashion/``
    Class-conditional BitDance for the ten classes of Fashion-MNIST at 32 x 32 pixels, 20 AR steps
    of 4 tokens, with its autoencoder, in float16. Trained by the commands in the README;
    ``recipes/fashion`` has the configurations, logs and an evaluation.

``from_pretrained("fashion")`` and ``bitdance generate``, whose default it is, find it here.
"""
