"""Segmentation models: backbones, context heads, losses, schedules, scores, inference and cost."""
