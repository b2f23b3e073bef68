"""Images: where they lie, how they are read, split, cut, augmented and perturbed."""
