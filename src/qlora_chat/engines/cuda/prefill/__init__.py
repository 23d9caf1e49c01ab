"""Prefill on a card: many prompt tokens in one pass, with weights dequantised to bf16."""
