"""conv3x3: a convolution of 3 x 3 pixels, with an optional sum or upscaling."""
