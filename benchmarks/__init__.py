"""Measurements that compare this project with plain code on the same machine."""
