"""Doors (train, evaluate, prepare, audit, replay, compare, voc_pretrain) and rooms; the one package that knows Ray."""
