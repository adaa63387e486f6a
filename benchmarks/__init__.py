"""Speed, side by side with peers and with the limit; and the evidence for the score."""
