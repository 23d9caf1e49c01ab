"""NVRTC and the CUDA driver through ctypes: compiling, launching, argument layouts."""
