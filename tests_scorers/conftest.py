import os

# Before torch is imported anywhere: two threads on a busy machine are slower than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from reward_server.scorers.torch_tools import prepare_torchvision

prepare_torchvision()
