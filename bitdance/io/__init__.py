"""Files of weights, images and settings, read with checks and written completely or not at all."""
