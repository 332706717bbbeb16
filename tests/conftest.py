import os

# Before torch is imported anywhere: two threads on a busy machine are slower than one, and sums
# over another number of threads differ in their last bits.
os.environ.setdefault("OMP_NUM_THREADS", "1")
