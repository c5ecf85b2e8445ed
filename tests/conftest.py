"""Every test runs on the CPU with one device, whatever the shell says; tests of meshes start processes of their own."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.pop("XLA_FLAGS", None)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
