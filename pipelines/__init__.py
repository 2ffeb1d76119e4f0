"""Doors (train, evaluate, prepare, audit, voc_pretrain) and the rooms behind them; the only package that knows Ray."""
