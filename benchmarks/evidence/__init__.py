"""Does a score of the weights rank trials as a sealed test set would? Trains once, keeps what judges need, judges."""
