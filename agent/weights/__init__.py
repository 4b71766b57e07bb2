"""Pretrained policies."""
