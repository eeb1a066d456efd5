"""conv3x3: a convolution of 3 x 3 pixels, with what follows it in a decoder."""
