"""An epoch's order in batches of one orientation, so that little of a batch's canvas is padding."""

import numpy as np

from datasets.transforms import epoch_order


def aspect_order(sizes: np.ndarray, seed: int, epoch: int, batch: int) -> np.ndarray:
    """The order of an epoch in which global batches are landscape (or square) or portrait, as many as can be.

    Steps cut the stream of all epochs into batches, so an epoch may begin and end inside of one. Those two parts have
    the orientation that more rows have, the same in all epochs: a batch over two epochs is of one orientation too. In
    between, at most one batch of an epoch is mixed: the last, of what each orientation has left. Epochs of fewer than
    four batches may mix more.

    Args:
        sizes: heights and widths of the rows in the order of their ids, int64 (n, 2).
        seed: the run's.
        epoch: counted from 0.
        batch: images of a global batch.

    Returns:
        As `epoch_order`: each place of the rows' ids in their own order, once.
    """
    rows = len(sizes)
    order = epoch_order(rows, seed, epoch)
    wide = (sizes[:, 1] >= sizes[:, 0])[order]
    common = 2 * np.count_nonzero(wide) >= rows
    main, other = np.flatnonzero(wide == common), np.flatnonzero(wide != common)
    head = min(-epoch * rows % batch, rows)
    tail = (rows - head) % batch
    if len(main) < head + tail:
        return order
    first, main, last = main[:head], main[head : len(main) - tail], main[len(main) - tail :]
    windows, left = [], []
    for places in (main, other):
        whole = len(places) // batch * batch
        windows += list(places[:whole].reshape(-1, batch))
        left.append(places[whole:])
    windows.sort(key=lambda places: int(places[-1]))  # a batch comes when it is full, reading the plain order
    return order[np.concatenate([first, *windows, *left, last])]
