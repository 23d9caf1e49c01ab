"""GGUF files as bases: read, dequantised once into an ordinary model folder in the cache."""
