"""Measured, not tested: python -m benchmarks.NAME, each in turn with what it compares, on your machine.

throughput          training steps: this project, the plain way, and the floor that the arithmetic sets
scaling             a step's cost as glimpses and images grow
startup             how long a command takes to its help, and to its first batch
"""
