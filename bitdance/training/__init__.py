"""Training of the autoencoder and the class-conditional model, resumable to the bit."""
