"""The formulas behind `functional` and `losses`, without argument checks.

Each takes a student's and a teacher's outputs and returns one value per sample, unreduced. Callers
have checked the arguments, upcast half precision to float32 and detached the teacher.
"""
