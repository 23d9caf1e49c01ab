"""The forward pass in plain PyTorch: the reference, and the fallback where no compiled backend fits."""
