"""What a bench is written with: see :mod:`ckernels.bench`.

python benchmarks/bench_rms_norm.py --threads 1 --isa avx2 --seconds 2 --case 4096 --format json
"""
from ckernels.bench import F, ids, normal, pair, run, tensor, torch, uniform

__all__ = ["F", "ids", "normal", "pair", "run", "tensor", "torch", "uniform"]
