"""Running a trained model: recordings to text, and the encoder over a corpus."""
