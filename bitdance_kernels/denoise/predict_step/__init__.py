"""predict_step: the end of one evaluation of the head and the beginning of the next."""
