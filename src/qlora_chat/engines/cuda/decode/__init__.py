"""One decode step on a card: rows, buffers, kernel launches, and the CUDA graph that replays them."""
