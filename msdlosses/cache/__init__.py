"""The teacher's logits, computed once and read from disk."""

from msdlosses.cache._cache import TeacherCache

__all__ = ["TeacherCache"]
