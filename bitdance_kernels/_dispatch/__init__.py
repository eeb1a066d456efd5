"""From the public function of an op to the backend that computes it."""
