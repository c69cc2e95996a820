"""x"""
from ._memory import MemoryScheduler
